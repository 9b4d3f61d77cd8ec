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


def test_hidden_and_other_files_are_ignored(own: Path) -> None:
    for name in (".hidden.png", "._red.png", "notes.txt", "Thumbs.db"):
        (own / "train" / "red_apple" / name).write_text("x")
    (own / "train" / ".git").mkdir()
    assert read_folder(own).counts.tolist() == [6, 12, 24, 3]


def test_images_in_folders_below_a_class_belong_to_it(own: Path) -> None:
    jpeg(own / "train" / "white_cup" / "more" / "deep.JPEG")
    assert read_folder(own).counts[3] == 4


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


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Test"), ("train", "valid")])
def test_splits_by_other_names_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_images(tmp_path / "photos" / name, {"red_apple": 2, "blue_car": 2})
    with pytest.raises(InputError, match="look like splits"):
        read_folder(tmp_path / "photos")


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


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", '{"x": "y"}', '{"0": 1}', "no json"], ids=lambda t: t[:9])
def test_a_damaged_list_of_unreadable_images_is_made_again(content: str, own: Path, tmp_path: Path) -> None:
    data = read_folder(own)
    lists = list((tmp_path / "cache" / "readable").iterdir())
    assert lists
    for file in lists:
        file.write_text(content)
    assert read_folder(own).counts.tolist() == data.counts.tolist()
