"""`verify` as a whole: every kind of damage is found once, and nothing is written beside the data."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imbalance_vlm.cli.main import main
from imbalance_vlm.errors import InputError
from imbalance_vlm.verification import batch_inspection, report
from imbalance_vlm.verification.collection import collect
from imbalance_vlm.verification.published import PUBLISHED
from imbalance_vlm.verification.verify import verify
from tests.data.miniatures import MINIATURES, TRAIN_COUNTS, imagenet_lt, places_lt, table
from tests.data.shared import LISTS, needs_lists
from tests.verification.test_inspection import encoded, huge_png, photograph

Capture = pytest.CaptureFixture[str]


def write(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(photograph(seed, 32), "PNG" if file.suffix == ".png" else "JPEG"))
    return file


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """train/ and test/ of two classes, in which nothing is wrong."""
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        for number in range(4 - label):
            write(root / "train" / name / f"{number}.jpg", 10 * label + number)
        for number in range(2):
            write(root / "test" / name / f"{number}.png", 100 + 10 * label + number)
    return root


def found_in(root: Path, **settings: Any) -> dict[str, str]:
    findings = verify(root, **settings).findings
    return dict(zip(findings["path"], findings["kind"], strict=True))


def test_a_sound_folder_has_no_findings(sound: Path) -> None:
    result = verify(sound)
    assert result.ok, result.findings
    assert {split: counts.tolist() for split, counts in result.counts.items()} == {"train": [4, 3], "test": [2, 2]}
    assert [len(labels) for labels in result.groups.values()] == [0, 0, 2]
    assert "many (> 100) none" in report.text(result)


def cut(root: Path) -> str:
    file = root / "train/cat/0.jpg"
    file.write_bytes(file.read_bytes()[:-80])
    return "train/cat/0.jpg"


def emptied(root: Path) -> str:
    (root / "train/cat/0.jpg").write_bytes(b"")
    return "train/cat/0.jpg"


def text_inside(root: Path) -> str:
    (root / "train/cat/0.jpg").write_text("a web page, say")
    return "train/cat/0.jpg"


def bomb(root: Path) -> str:
    (root / "train/cat/bomb.png").write_bytes(huge_png())
    return "train/cat/bomb.png"


def dangling(root: Path) -> str:
    (root / "train/cat/link.jpg").symlink_to(root / "gone.jpg")
    return "train/cat/link.jpg"


def pipe(root: Path) -> str:
    os.mkfifo(root / "train/cat/pipe.jpg")
    return "train/cat/pipe.jpg"


def copied(source: str, target: str) -> Callable[[Path], str]:
    def copy(root: Path) -> str:
        shutil.copy(root / source, root / target)
        return target

    return copy


def near_copy(target: str) -> Callable[[Path], str]:
    def copy(root: Path) -> str:
        with Image.open(root / "train/cat/1.jpg") as image:
            image.resize((48, 48)).save(root / target, quality=60)
        return target

    return copy


def empty_class(root: Path) -> str:
    (root / "train" / "emu").mkdir()
    return "train/emu"


DAMAGE: dict[str, tuple[str, Callable[[Path], str]]] = {
    "cut": ("truncated", cut),
    "emptied": ("zero_byte", emptied),
    "text": ("unreadable", text_inside),
    "bomb": ("bomb", bomb),
    "dangling": ("missing", dangling),
    "pipe": ("unreadable", pipe),
    "duplicate": ("duplicate", copied("train/cat/0.jpg", "train/cat/copy.jpg")),
    "conflict": ("label_conflict", copied("train/cat/0.jpg", "train/dog/copy.jpg")),
    "leak": ("leak", copied("train/cat/0.jpg", "test/cat/copy.jpg")),
    "near": ("near_duplicate", near_copy("train/cat/near.jpg")),
    "near_leak": ("near_leak", near_copy("test/cat/near.jpg")),
    "empty_class": ("empty_class", empty_class),
}


def test_images_that_only_share_their_hash_are_not_near(sound: Path) -> None:
    rows, columns = np.indices((9, 9))
    for name, step in (("left", columns >= 1), ("bottom", rows == 8)):  # brighter to the right and downwards, both
        squares = (rows + columns + 150 * step).astype(np.uint8)
        Image.fromarray(np.kron(squares, np.ones((8, 8), np.uint8))).save(sound / "train" / "cat" / f"{name}.png")
    assert found_in(sound) == {}
    shutil.copy(sound / "train/cat/left.png", sound / "train/cat/same.png")
    assert found_in(sound) == {"train/cat/same.png": "duplicate"}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_once_and_by_name(sound: Path, what: str) -> None:
    kind, damage = DAMAGE[what]
    path = damage(sound)
    assert found_in(sound) == {path: kind}


def test_an_archive_of_a_damaged_folder_has_the_same_findings(sound: Path, tmp_path: Path) -> None:
    names = [name for name in DAMAGE if name not in ("cut", "emptied", "text", "near_leak")]  # one damage to a file
    for name in names:
        DAMAGE[name][1](sound)
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(sound.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, f"photos/{path.relative_to(sound).as_posix()}")
    inside = {path.removeprefix("photos/"): kind for path, kind in found_in(file).items()}
    outside = found_in(sound)
    assert set(outside.values()) == {DAMAGE[name][0] for name in names}
    assert inside == {path: kind for path, kind in outside.items() if path not in _only_on_disk}


_only_on_disk = ("train/cat/link.jpg", "train/cat/pipe.jpg", "train/emu")


def listing_of(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*"))


def test_nothing_is_written_beside_the_data(sound: Path) -> None:
    cut(sound)
    before = listing_of(sound)
    assert main(["data", "verify", str(sound), "--out", "report"]) == 1
    assert main(["data", "show", str(sound), "--out", "sheet.png"]) == 0
    assert listing_of(sound) == before
    for place in (sound, sound / "train" / "report"):
        assert main(["data", "verify", str(sound), "--out", str(place)]) == 2
        assert main(["data", "show", str(sound), "--out", str(place / "sheet.png")]) == 2
    assert listing_of(sound) == before


def test_a_second_call_inspects_only_changed_images(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspected: list[int] = []
    inspect_all = batch_inspection.inspect_all

    def counted(locations: Any, workers: int) -> Any:
        inspected.append(len(locations))
        return inspect_all(locations, workers)

    monkeypatch.setattr(batch_inspection, "inspect_all", counted)
    first = verify(sound)
    assert verify(sound).findings.equals(first.findings)
    cut(sound)
    assert verify(sound).tally == verify(sound).tally == {"truncated": 1}
    assert inspected == [11, 0, 1, 0]


def test_inspections_of_a_killed_call_are_kept(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect_all = batch_inspection.inspect_all

    def killed(locations: Any, workers: int) -> Any:
        for number, result in inspect_all(locations, workers):
            if number == 6:
                raise KeyboardInterrupt
            yield number, result

    monkeypatch.setattr(batch_inspection, "inspect_all", killed)
    with pytest.raises(KeyboardInterrupt):
        verify(sound)
    inspected: list[int] = []
    monkeypatch.setattr(
        batch_inspection, "inspect_all", lambda locations, workers: inspected.append(len(locations)) or iter(())
    )
    verify(sound)
    assert inspected == [5]


# -- sources ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MINIATURES)
def test_every_dataset_is_verified_through_its_reader(name: str, tmp_path: Path) -> None:
    section = MINIATURES[name](tmp_path / "data")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": section}))
    result = verify(str(tmp_path / "own.yaml"))
    published = {facts.dataset for facts in PUBLISHED} - {"cifar10_lt", "cifar100_lt"}  # of other imbalances
    assert set(result.tally) <= {"published"}
    assert (result.published is not None) == (name in published)
    assert ("published" in result.tally) == (name in published)


def test_missing_images_of_a_list_are_all_named_and_counted(tmp_path: Path) -> None:
    section = imagenet_lt(tmp_path / "data")
    gone = sorted(Path(section["root"]).rglob("*_0.JPEG"))
    for file in gone:
        file.unlink()
    result = verify({"data": section}, near=-1)
    missing = result.findings[result.findings["kind"] == "missing"]
    assert sorted(missing["path"]) == [file.relative_to(section["root"]).as_posix() for file in gone]
    assert result.counts["train"].tolist() == list(TRAIN_COUNTS)


def test_without_any_image_the_lists_are_still_compared(tmp_path: Path) -> None:
    section = places_lt(tmp_path / "data")
    shutil.rmtree(Path(section["root"]) / "train")
    shutil.rmtree(Path(section["root"]) / "val")
    result = verify({"data": section})
    total = sum(int(counts.sum()) for counts in result.counts.values())
    assert result.tally["missing"] == total
    assert result.published is not None


@needs_lists
def test_the_real_places_lists_agree_with_the_published_table(tmp_path: Path) -> None:
    result = verify({"data": {"name": "places_lt", "root": str(tmp_path), "lists": str(LISTS)}}, ignore=["missing"])
    assert result.ok
    assert result.published is not None
    assert result.published["agrees"].all()
    assert [len(labels) for labels in result.groups.values()] == [131, 163, 71]


def test_a_table_without_splits_is_not_divided(tmp_path: Path) -> None:
    section = table(tmp_path)
    result = verify(section["file"])
    assert {split: int(counts.sum()) for split, counts in result.counts.items()} == {"all": 16}
    assert any("counted together" in note for note in result.notes)
    with pytest.raises(InputError, match="label_column"):
        verify(section["file"], ["label_column=species"])


def test_a_report_may_lie_beside_a_table_but_not_among_its_images(tmp_path: Path) -> None:
    section = table(tmp_path)
    file = Path(section["file"])
    assert main(["data", "verify", str(file), "--out", str(file.parent / "report"), "--near", "-1"]) == 0
    assert main(["data", "verify", str(file), "--out", str(file.parent / "images" / "report")]) == 2


def test_a_thinned_benchmark_is_not_compared(tmp_path: Path) -> None:
    section = imagenet_lt(tmp_path / "data") | {"shots": 1}
    result = verify({"data": section})
    assert result.published is None
    assert any("shots" in note for note in result.notes)


# -- the command line ------------------------------------------------------------------------------------------------
def test_report_and_exit_status(sound: Path, capsys: Capture) -> None:
    assert main(["data", "verify", str(sound)]) == 0
    assert "findings: none" in capsys.readouterr().out
    cut(sound)
    assert main(["data", "verify", str(sound), "--out", "report"]) == 1
    printed = capsys.readouterr().out
    assert "truncated: 1" in printed
    assert "train/cat/0.jpg" in printed
    files = {path.name for path in Path("report").iterdir()}
    assert files == {"report.md", "report.json", "findings.csv", "classes.csv", "classes.png"}
    content = json.loads(Path("report/report.json").read_text())
    assert content["findings"] == {"truncated": 1}
    assert content["groups"] == {"many": None, "medium": None, "few": 2}
    assert main(["data", "verify", str(sound), "--ignore", "truncated"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_recipe"], "packaged recipe"),
        (["no/such/folder"], "neither a folder"),
        (["none.zip"], "no such file"),
        (["none.csv"], "no such file"),
        (["{sound}", "rot=1"], "Did you mean 'root'"),
        (["{sound}", "--ignore", "truncate"], "Did you mean 'truncated'"),
        (["{sound}", "--near", "99"], "`near` must be"),
        (["{sound}", "--embeddings"], "encoder"),
        (["{sound}/train/cat/0.jpg"], "must be a recipe"),
        (["{sound}/train/cat"], "class folders"),
    ],
)
def test_bad_input_is_one_clear_error(sound: Path, arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["data", "verify", *(word.replace("{sound}", str(sound)) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_collection_names_what_it_came_from(sound: Path) -> None:
    collection = collect(sound)
    assert collection.roots[0] == sound
    assert collection.splits == ["train", "test"]
    assert {image.split for image in collection.images} == {"train", "test"}


def test_a_folder_whose_names_are_no_text_is_reported(sound: Path, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/p\xe9"
    os.rename(sound, root)
    os.rename(root + b"/train/cat", root + b"/train/caf\xe9")
    Path(os.fsdecode(root + b"/test/dog/z\xe9.png")).touch()
    assert main(["data", "verify", os.fsdecode(root), "--out", "report"]) == 1
    assert main(["data", "show", os.fsdecode(root)]) == 0
    content = json.loads(Path("report/report.json").read_text())
    assert content["name"] == r"p\udce9"
    assert [row["name"] for row in content["classes"]] == [r"caf\udce9", "cat", "dog"]
    assert r"test/dog/z\udce9.png" in Path("report/findings.csv").read_text()
