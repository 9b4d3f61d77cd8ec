"""Folders of images, complete and broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm import InputError, run
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import create_dataset
from tests.conftest import COUNTS, write_images
from tests.data.miniatures import file_states


def read_folder(root: Path, **settings: object) -> Dataset:
    return create_dataset("folder", root=root, **settings)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """One folder with a folder for each class."""
    write_images(tmp_path / "flat", COUNTS)
    return tmp_path / "flat"


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Path:
    """A copy of the tiny set that a test may break."""
    return Path(shutil.copytree(images, tmp_path / "own"))


def jpeg(path: Path, keep: float = 1.0) -> Path:
    """A noisy JPEG file of which only the first part is written."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path, quality=90)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def names(data: Dataset, split: str) -> set[str]:
    images = data.splits[split].images
    return {images.name(row) for row in range(len(images))}


def test_train_and_test_folders_are_used_as_they_are(images: Path) -> None:
    data = read_folder(images)
    assert data.class_names == ("blue car", "green leaf", "red apple", "white cup")
    assert data.counts.tolist() == [6, 12, 24, 3]
    assert {split: len(s) for split, s in data.splits.items()} == {"train": 45, "test": 20}
    assert all(name.startswith("test/") for name in names(data, "test"))


def test_a_val_folder_is_used(own: Path) -> None:
    shutil.copytree(own / "test", own / "val")
    assert len(read_folder(own).splits["val"]) == 20


def test_one_folder_is_split_by_seed(flat: Path) -> None:
    first, again = read_folder(flat), read_folder(flat)
    other = read_folder(flat, split_seed=1)
    assert names(first, "test") == names(again, "test") != names(other, "test")
    assert not names(first, "train") & names(first, "test")
    assert len(names(first, "train") | names(first, "test")) == sum(COUNTS.values())
    assert first.counts.tolist() == [5, 10, 19, 2]  # a fifth of 6, 12, 24 and 3 is for testing


@pytest.mark.parametrize("fractions", [(0.2, 0.0), (0.9, 0.0), (0.5, 0.49), (0.99, 0.9)])
def test_every_class_keeps_a_training_image(flat: Path, fractions: tuple[float, float]) -> None:
    write_images(flat, {"red_apple": 1})
    shutil.copytree(flat / "white_cup", flat / "single")
    for file in sorted((flat / "single").iterdir())[1:]:
        file.unlink()
    data = read_folder(flat, test_fraction=fractions[0], val_fraction=fractions[1])
    assert data.counts.min() >= 1


def test_a_folder_of_single_images_has_nothing_to_test_on(tmp_path: Path) -> None:
    write_images(tmp_path / "s", dict.fromkeys(COUNTS, 1))
    with pytest.raises(InputError, match="must have images for 'test'"):
        read_folder(tmp_path / "s")


def test_a_missing_folder_and_one_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "photos.csv").write_text("path,label\n")
    with pytest.raises(InputError, match=r"got the file .*photos\.csv.*data\.name=table"):
        read_folder(tmp_path / "photos.csv")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "empty" / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"must hold class folders with images.*It holds: cat"):
        read_folder(tmp_path / "empty")


def test_a_split_without_images_is_refused(own: Path) -> None:
    shutil.rmtree(own / "test")
    (own / "test").mkdir()
    with pytest.raises(InputError, match="must have images for 'test'"):
        read_folder(own)


def test_a_class_without_training_images_is_refused_by_name(own: Path, recipe: dict[str, object]) -> None:
    shutil.rmtree(own / "train" / "white_cup")
    with pytest.raises(InputError, match=r"got 0 for class 3 \('white cup'\).*allow_empty"):
        run(recipe, {"data.root": str(own)})
    result = run(recipe, {"data.root": str(own), "data.allow_empty": True, "training.epochs": 1})
    assert result.record["classes"]["train_counts"][3] == 0  # type: ignore[union-attr]


def test_unreadable_images_are_all_listed(own: Path) -> None:
    jpeg(own / "train" / "blue_car" / "whole.jpg")
    jpeg(own / "train" / "blue_car" / "cut.jpg", keep=0.9)
    (own / "test" / "red_apple" / "zero.png").touch()
    (own / "train" / "red_apple" / "text.png").write_text("no image")
    with pytest.raises(InputError) as error:
        read_folder(own)
    message = str(error.value)
    assert message.startswith("3 images cannot be read:")
    for path in ("train/blue_car/cut.jpg", "test/red_apple/zero.png", "train/red_apple/text.png"):
        assert path in message
    assert "whole.jpg" not in message
    assert "set data.on_error to skip" in message


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.98])
def test_a_jpeg_cut_anywhere_is_found(own: Path, keep: float) -> None:
    cut = jpeg(own / "train" / "blue_car" / "cut.jpg", keep)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InputError, match=r"1 image cannot be read:\n.*cut\.jpg"):
            read_folder(own)
    jpeg(cut)
    assert read_folder(own).counts[0] == 7


def test_skipped_images_are_counted_in_the_result(own: Path, recipe: dict[str, object]) -> None:
    jpeg(own / "train" / "blue_car" / "cut.jpg", keep=0.5)
    result = run(recipe, {"data.root": str(own), "data.on_error": "skip", "training.epochs": 1})
    assert result.record["images"] == {"train": 45, "test": 20, "skipped": 1}  # type: ignore[union-attr]
    assert result.record["skipped"] == ["train/blue_car/cut.jpg"]  # type: ignore[union-attr]


def test_a_split_of_which_nothing_can_be_read_is_refused(own: Path) -> None:
    for path in (own / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="split 'test'.*holds no images"):
        read_folder(own, on_error="skip")


def test_nothing_is_written_into_the_folder(own: Path, recipe: dict[str, object]) -> None:
    before = file_states(own)
    run(recipe, {"data.root": str(own), "training.epochs": 1})
    assert file_states(own) == before


def test_other_files_are_passed_over_and_counted(own: Path, recipe: dict[str, object]) -> None:
    apples = own / "train" / "red_apple"
    for name in (".hidden.png", "._red.png", "notes.txt", "Thumbs.db", "LICENSE"):
        (apples / name).write_text("x")
    for folder in (".git", ".ipynb_checkpoints", "@eaDir"):
        (apples / folder).mkdir()
        shutil.copy(apples / "0.png", apples / folder / "0.png")
    (own / "train" / ".git").mkdir()
    for loose in (own / "cover.png", own / "test" / "loose.png"):
        shutil.copy(apples / "0.png", loose)
    (own / "extra").mkdir()
    shutil.copy(apples / "0.png", own / "extra" / "0.png")
    counts = {"hidden": 6, "in no class folder": 2, ".txt": 1, "without a suffix": 1, "beside the splits": 1}
    data = read_folder(own)
    assert data.counts.tolist() == [6, 12, 24, 3]
    assert data.passed_over == counts
    result = run(recipe, {"data.root": str(own), "training.epochs": 1})
    assert result.record["passed_over"] == counts  # type: ignore[union-attr]


def test_a_run_says_what_it_passes_over(
    own: Path, recipe: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "train" / "red_apple" / "notes.txt").touch()
    (own / "train" / "red_apple" / "zero.png").touch()
    run(recipe, {"data.root": str(own), "data.on_error": "skip", "data.shots": 2, "training.epochs": 1})
    line = "own: 28 images of 4 classes used; 37 left out by the protocol; 1 skipped; 1 file passed over: 1 .txt"
    assert capsys.readouterr().err.splitlines().count(line) == 1


def test_the_files_of_macos_are_no_class(flat: Path) -> None:
    shutil.copytree(flat / "red_apple", flat / "__MACOSX" / "red_apple")
    (flat / "__MACOSX" / "empty").mkdir()
    assert read_folder(flat).passed_over == {"hidden": 24}


@pytest.mark.parametrize("suffix", ["avif", "jpe", "jfif", "jp2", "tga", "pgm"])
def test_every_format_that_pillow_decodes_is_read(suffix: str, own: Path) -> None:
    image = Image.new("L" if suffix == "pgm" else "RGB", (16, 16), 7)
    image.save(own / "train" / "white_cup" / f"x.{suffix}")
    assert read_folder(own).counts[3] == 4


@pytest.mark.parametrize("suffix", ["eps", "pdf", "mpg", "h5"])
def test_formats_that_are_no_images_are_passed_over(suffix: str, own: Path) -> None:
    (own / "train" / "white_cup" / f"x.{suffix}").write_bytes(b"x")
    assert read_folder(own).passed_over == {f".{suffix}": 1}


def test_images_in_folders_below_a_class_belong_to_it(own: Path) -> None:
    jpeg(own / "train" / "white_cup" / "more" / "deep.JPEG")
    data = read_folder(own)
    assert data.counts[3] == 4
    assert data.notes[0].startswith("1 of the images lie in folders below a class folder, such as train/white_cup/more")


def test_images_of_other_modes_are_read_as_rgb(own: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "I;16", "LA", "1"):
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (8, 8)).save(own / "train" / "white_cup" / f"{mode.replace(';', '')}.{suffix}")
    images = read_folder(own).splits["train"].images
    assert {images[row].mode for row in range(len(images))} == {"RGB"}


def test_folders_that_give_one_class_name_are_refused(own: Path) -> None:
    shutil.copytree(own / "train" / "red_apple", own / "train" / "red apple")
    with pytest.raises(InputError, match="'red apple' more than once"):
        read_folder(own)


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_splits_are_known_by_their_other_names(val: str, tmp_path: Path) -> None:
    for name, count in (("Training", 3), (val, 2), ("testing", 1)):
        write_images(tmp_path / "photos" / name, {"red_apple": count, "blue_car": count})
    data = read_folder(tmp_path / "photos")
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 6, "val": 4, "test": 2}


def test_two_folders_for_one_split_are_refused(own: Path) -> None:
    for name in ("val", "valid"):
        shutil.copytree(own / "test", own / name)
    with pytest.raises(InputError, match="both val/ and valid/ are 'val'; merge them"):
        read_folder(own)


def test_without_test_images_every_remedy_works(own: Path) -> None:
    (own / "test").rename(own / "valid")
    with pytest.raises(InputError, match=r"no test/: .*data\.test_on=val .*valid/; or set data\.root=(\S+) ") as error:
        read_folder(own)
    assert "name them" not in str(error.value)
    data = read_folder(own, test_on="val")
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 45, "test": 20}
    assert all(name.startswith("valid/") for name in names(data, "test"))
    assert str(own / "train") in str(error.value)
    assert set(read_folder(own / "train").splits) == {"train", "test"}


def test_test_images_without_labels_can_be_left_out(own: Path) -> None:
    (own / "test").rename(own / "val")
    jpeg(own / "test" / "1.jpg")
    with pytest.raises(InputError, match=r"images for 'test', but test/ holds none.*or set data\.test_on=val .* val/"):
        read_folder(own)
    data = read_folder(own, test_on="val")
    assert (len(data.splits["test"]), data.passed_over) == (20, {"beside the splits": 1})


def test_images_of_the_test_folder_are_counted_where_val_is_tested_on(own: Path) -> None:
    shutil.copytree(own / "test", own / "val")
    data = read_folder(own, test_on="val")
    assert "val" not in data.splits
    assert data.passed_over == {"beside the splits": 20}


def test_testing_on_val_needs_a_val_folder(own: Path, flat: Path) -> None:
    with pytest.raises(InputError, match=r"no val/: .*set data\.test_on=test"):
        read_folder(own, test_on="val")
    with pytest.raises(InputError, match="`test_on` must be 'test'"):
        read_folder(flat, test_on="val")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", {"red_apple": 5})
    (tmp_path / "photos" / "red_apple").rename(tmp_path / "photos" / "train")
    write_images(tmp_path / "photos", {"blue_car": 5})
    assert read_folder(tmp_path / "photos").class_names == ("blue car", "train")


def test_validation_images_are_drawn_from_the_train_folder(images: Path) -> None:
    """With test/ but without val/, the train folder is divided and test stays as it is."""
    whole, cut = read_folder(images), read_folder(images, val_fraction=0.25)
    names = {split: {part.images.name(row) for row in range(len(part))} for split, part in cut.splits.items()}
    assert not names["train"] & names["val"]
    assert len(names["train"] | names["val"]) == len(whole.splits["train"])
    assert len(cut.splits["test"]) == len(whole.splits["test"])
