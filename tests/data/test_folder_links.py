"""Folders with links, odd names, class names from a file, and the folder of runs among the classes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from imbalance_vlm import InputError, predict_images, run
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import create_dataset
from tests.conftest import COUNTS, write_images


def read_folder(root: Path | str, **settings: object) -> Dataset:
    return create_dataset("folder", root=root, **settings)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """One folder with a folder for each class."""
    write_images(tmp_path / "flat", COUNTS)
    return tmp_path / "flat"


def num_images(data: Dataset) -> dict[str, int]:
    """The number of images of each class in all splits."""
    counts = [split.counts(data.num_classes) for split in data.splits.values()]
    return dict(zip(data.class_names, map(sum, zip(*counts, strict=True)), strict=True))


# -- links -----------------------------------------------------------------------------------------------------------
def test_links_to_files_and_folders_are_followed(flat: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "more", {"red_apple": 5, "green_leaf": 1, "white_cup": 4}, seed=1)
    (flat / "red_apple" / "more").symlink_to(os.path.relpath(tmp_path / "more" / "red_apple", flat / "red_apple"))
    (flat / "green_leaf" / "link.png").symlink_to(tmp_path / "more" / "green_leaf" / "0.png")
    (flat / "tea_cup").symlink_to(tmp_path / "more" / "white_cup")
    expected = {"blue car": 6, "green leaf": 13, "red apple": 29, "tea cup": 4, "white cup": 3}
    assert num_images(read_folder(flat)) == expected


def test_an_image_that_is_reached_twice_counts_once(flat: Path) -> None:
    (flat / "red_apple" / "copy.png").symlink_to("0.png")
    (flat / "red_apple" / "a").mkdir()
    (flat / "red_apple" / "a" / "1.png").symlink_to("../1.png")
    (flat / "red_apple" / "part").mkdir()
    shutil.move(flat / "red_apple" / "2.png", flat / "red_apple" / "part" / "2.png")
    (flat / "red_apple" / "again").symlink_to("part")
    data = read_folder(flat)
    assert num_images(data)["red apple"] == 24
    assert data.passed_over == {"linked twice": 3}
    images = data.splits["train"].images
    assert not any("again" in images.name(row) or "copy" in images.name(row) for row in range(len(images)))


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_links_in_a_circle_are_passed_over(target: str, flat: Path) -> None:
    (flat / "red_apple" / "loop").symlink_to(target)
    data = read_folder(flat)
    assert num_images(data)["red apple"] == 24
    assert data.passed_over == {"linked twice": 1}


def test_a_circle_of_two_folders_ends(flat: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "outside", {"red_apple": 2}, seed=1)
    (flat / "red_apple" / "more").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(flat)
    assert num_images(read_folder(flat))["red apple"] == 26


@pytest.mark.parametrize("link", ["tree", "file"])
def test_one_image_in_two_splits_is_refused(images: Path, link: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(images, tmp_path / "own"))
    if link == "tree":
        (root / "val").symlink_to("../own/test")
    else:
        (root / "test" / "red_apple" / "x.png").symlink_to("../../train/red_apple/0.png")
    with pytest.raises(InputError, match=r"must be in one split, but .*test/.* lead to the same file.*remove one"):
        read_folder(root)


def test_one_image_in_two_classes_is_refused(flat: Path) -> None:
    (flat / "red_apple" / "car.png").symlink_to(flat / "blue_car" / "0.png")
    with pytest.raises(InputError, match="must be in one class, but 'blue_car/0.png' and 'red_apple/car.png'"):
        read_folder(flat)


def test_a_folder_that_cannot_be_listed_is_refused(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (flat / "red_apple" / "locked").mkdir()
    scandir = os.scandir

    def refuse_one(path: str | Path) -> object:
        if str(path).endswith("locked"):  # chmod has no effect for root
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_one)
    with pytest.raises(InputError, match="red_apple/locked' cannot be listed: Permission denied; make it readable"):
        read_folder(flat)


# -- names -----------------------------------------------------------------------------------------------------------
def test_folders_are_named_by_a_file(flat: Path, tmp_path: Path) -> None:
    (flat / "red_apple").rename(flat / "n01440764")
    (flat / "blue_car").rename(flat / "two words")
    (tmp_path / "names.txt").write_text(
        "n01440764 tench, Tinca tinca\ntwo words\tcar\ngreen_leaf leaf\nwhite_cup cup\nunused lynx\n"
    )
    data = read_folder(flat, class_names=tmp_path / "names.txt")
    assert data.class_names == ("leaf", "tench, Tinca tinca", "car", "cup")
    (tmp_path / "names.txt").write_text("n01440764 tench\n")
    with pytest.raises(InputError, match="every class folder must be named in `class_names` .*'green_leaf'.*<TAB>name"):
        read_folder(flat, class_names=tmp_path / "names.txt")


@pytest.mark.parametrize("text", ["apple\ncar\nleaf\ncup\n", "0\tapple\n1\tcar\n02\tleaf\n3\tcup\n"])
def test_numbered_folders_are_named_by_a_file(text: str, flat: Path, tmp_path: Path) -> None:
    for number, name in (("00", "red_apple"), ("01", "blue_car"), ("02", "green_leaf"), ("3", "white_cup")):
        (flat / name).rename(flat / number)
    (tmp_path / "names.txt").write_text(text)
    data = read_folder(flat, class_names=tmp_path / "names.txt")
    assert num_images(data) == {"apple": 24, "car": 6, "leaf": 12, "cup": 3}


def test_other_names_make_another_run(images: Path, recipe: dict[str, object], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    paths = set()
    for word in ("cup", "mug"):
        names.write_text(f"blue_car car\ngreen_leaf leaf\nred_apple apple\nwhite_cup {word}\n")
        result = run(recipe, {"data.class_names": str(names), "training.epochs": 1})
        assert result.record["classes"]["names"][3] == word  # type: ignore[union-attr]
        paths.add(result.path)
    assert len(paths) == 2


def test_names_of_files_may_be_any_bytes(flat: Path) -> None:
    os.rename(os.fsencode(flat / "red_apple" / "0.png"), os.fsencode(flat) + b"/red_apple/caf\xe9.png")
    data = read_folder(flat)
    assert num_images(data)["red apple"] == 24


def test_names_of_class_folders_must_be_text(flat: Path) -> None:
    os.rename(os.fsencode(flat / "red_apple"), os.fsencode(flat) + b"/caf\xe9")
    with pytest.raises(InputError, match=r"must be in UTF-8.*got b'caf\\xe9'; rename the folder"):
        read_folder(flat)


def test_a_root_of_any_bytes_is_read(flat: Path, recipe: dict[str, object]) -> None:
    root = os.fsdecode(os.fsencode(flat.parent) + b"/caf\xe9")
    os.rename(flat, root)
    result = run(recipe, [f"data.root={root}", "training.epochs=1"])
    assert result.record["identity"]["dataset"] == r"caf\udce9"  # type: ignore[union-attr]
    assert run(recipe, {"data.root": root, "training.epochs": 1}).path == result.path
    assert len(predict_images(result.path, [root])) == 45
    result = run(recipe, {"data.root": root, "encoder.resized": 16, "encoder.cache": False, "training.epochs": 1})
    assert len(predict_images(result.path, [root])) == 45


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("a\0b", "NUL"),
        ("x" * 5000, "too long"),
        ("x" * 300, "too long"),
        ("~nosuchuser/x", "there is no user"),
    ],
    ids=["null", "long path", "long name", "unknown user"],
)
def test_paths_that_no_file_can_have_are_refused(root: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_folder(root)


# -- the folder of runs ----------------------------------------------------------------------------------------------
def test_runs_beside_the_classes_are_no_class(
    flat: Path, recipe: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flat)
    changes = {"data.root": ".", "training.epochs": 1}
    first = run(recipe, changes)
    shutil.copy(flat / "red_apple" / "0.png", flat / "runs" / "tiny" / "plot.png")
    again = run(recipe, changes | {"training.epochs": 2})
    for result in (first, again):
        assert result.record["classes"]["names"] == ["blue car", "green leaf", "red apple", "white cup"]  # type: ignore[union-attr]
    assert set(again.record["passed_over"]) == {"in folders of runs"}  # type: ignore[union-attr]


def test_a_study_beside_the_classes_is_no_class(
    flat: Path, recipe: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flat)
    study = recipe | {"data": {"name": "folder", "root": "."}, "grid": {"seeds": [0, 1]}}
    run(study)
    shutil.copy(flat / "red_apple" / "0.png", flat / "runs" / "tiny" / "plot.png")
    assert read_folder(".").class_names == ("blue car", "green leaf", "red apple", "white cup")


def test_bad_data_leave_no_folder_of_runs(flat: Path, recipe: dict[str, object], tmp_path: Path) -> None:
    (flat / "red_apple" / "zero.png").touch()
    with pytest.raises(InputError, match="1 image cannot be read"):
        run(recipe, {"data.root": str(flat)}, runs=tmp_path / "results")
    assert not (tmp_path / "results").exists()
