"""Scenes: exact boxes and masks, what the seed decides, and files that readers of COCO and LVIS understand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.data import scenes as module
from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.data.scenes import Scene, Scenes, annotation, run_lengths, write_scenes

SIDE = module.SIDE


@pytest.fixture(scope="module")
def food() -> Dataset:
    return create_dataset("icons_food")


def squares() -> Dataset:
    """A class of filled squares, a class of outlined ones, each 16 of 32 pixels wide, and a third without images."""
    filled, outlined = (np.full((32, 32, 3), 255, np.uint8) for _ in range(2))
    filled[8:24, 8:24] = 0
    outlined[8:24, 8:24] = (200, 0, 0)
    outlined[10:22, 10:22] = 255
    split = Split(ArrayImages(np.stack([filled, filled, filled, outlined])), [0, 0, 0, 1])
    return Dataset("squares", ("filled", "outlined", "unseen"), {"train": split, "test": split}, allow_empty=True)


def as_bytes(scene: Scene) -> bytes:
    return b"".join(part.tobytes() for part in (scene.image, scene.labels, scene.boxes, scene.masks))


def test_every_scene_has_three_to_eight_objects_whose_masks_are_disjoint_and_fill_their_boxes(food: Dataset) -> None:
    for scene in Scenes(food, count=200):
        assert scene.image.shape == (SIDE, SIDE, 3)
        assert 3 <= len(scene.labels) <= 8
        assert scene.masks.sum(axis=0).max() == 1
        for mask, (left, top, width, height) in zip(scene.masks, scene.boxes.tolist(), strict=True):
            rows, columns = np.nonzero(mask)
            assert (rows.min(), columns.min()) == (top, left)
            assert (rows.max() + 1, columns.max() + 1) == (top + height, left + width)
        outside = scene.image[~scene.masks.any(axis=0)]
        assert (outside == outside[0]).all(), "a pixel outside of all masks shows something"


def test_a_mask_is_the_silhouette_of_its_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares at their own size: every mask is 16 x 16, holes filled, unless a later square covers a part."""
    monkeypatch.setattr(module, "SIZES", (32, 32))
    monkeypatch.setattr(module, "VISIBLE", 1.0)
    for scene in Scenes(squares(), count=50):
        assert (scene.boxes[:, 2:] == 16).all()
        assert (scene.masks.sum(axis=(1, 2)) == 256).all()
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            dark = (scene.image[mask] == ((0, 0, 0), (200, 0, 0))[label]).all(axis=-1).sum()
            assert dark == (256, 112)[label]


def test_later_drawings_hide_at_most_a_share_of_earlier_ones() -> None:
    hidden = 0
    for scene in Scenes(squares(), count=100):
        for mask, (_, _, width, height) in zip(scene.masks, scene.boxes.tolist(), strict=True):
            hidden += int(mask.sum()) < width * height
            assert mask.sum() >= module.VISIBLE * min(width, height) ** 2
    assert hidden > 20, "nothing overlaps"


def test_a_scene_depends_on_seed_and_number_alone(food: Dataset) -> None:
    few, many = Scenes(food, count=3, seed=5), Scenes(food, count=30, seed=5)
    assert [as_bytes(scene) for scene in few] == [as_bytes(many[number]) for number in range(3)]
    assert as_bytes(few[0]) != as_bytes(few[1])
    assert as_bytes(few[0]) != as_bytes(Scenes(food, count=3, seed=6)[0])


def test_drawings_come_from_the_split(monkeypatch: pytest.MonkeyPatch, food: Dataset) -> None:
    used: list[np.ndarray] = []
    cutout = module.cutout

    def spy(image: Image.Image, length: int) -> Any:
        used.append(np.asarray(image))
        return cutout(image, length)

    monkeypatch.setattr(module, "cutout", spy)
    list(Scenes(food, "test", count=20))
    images = food.splits["test"].images
    tested = {np.asarray(images[row]).tobytes() for row in range(len(images))}
    assert {pixels.tobytes() for pixels in used} <= tested


def test_classes_are_drawn_as_often_as_the_dataset_trains_on_them(food: Dataset) -> None:
    scenes = Scenes(food, "test", count=800)
    drawn = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=food.num_classes)
    assert np.allclose(scenes.frequencies, food.counts / food.counts.sum())
    assert np.corrcoef(drawn, food.counts)[0, 1] > 0.95


def test_the_tail_has_any_factor_and_classes_without_images_are_not_drawn(food: Dataset) -> None:
    steep, flat = (Scenes(food, tail_factor=factor).frequencies for factor in (50.0, 1.0))
    assert steep.max() / steep.min() == pytest.approx(50)
    assert steep.argmax() == food.counts.argmax()
    assert np.allclose(flat, 1 / food.num_classes)
    assert Scenes(squares(), tail_factor=4.0).frequencies[2] == 0


@pytest.mark.parametrize(
    ("settings", "named"), [({"split": "dev"}, "split"), ({"count": 0}, "count"), ({"tail_factor": 0.5}, "tail_factor")]
)
def test_wrong_settings_are_named(food: Dataset, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"`{named}` must be"):
        Scenes(food, **settings)


def decoded(segmentation: dict[str, Any]) -> np.ndarray:
    """The mask of an uncompressed run-length encoding, as pycocotools reads it."""
    values = np.arange(len(segmentation["counts"])) % 2
    return np.repeat(values, segmentation["counts"]).reshape(segmentation["size"], order="F").astype(bool)


def test_encoded_masks_are_the_masks(food: Dataset) -> None:
    for scene in Scenes(food, count=20):
        for row, mask in enumerate(scene.masks):
            entry = annotation(scene, row)
            assert (decoded(entry["segmentation"]) == mask).all()
            assert entry["area"] == mask.sum()
    for mask in (np.zeros((3, 2), bool), np.ones((3, 2), bool)):
        assert (decoded({"size": [3, 2], "counts": run_lengths(mask)}) == mask).all()


@pytest.mark.parametrize("layout", ["coco", "lvis"])
def test_written_files_agree_with_the_scenes(food: Dataset, layout: Any, tmp_path: Path) -> None:
    scenes = Scenes(food, "test", count=12, seed=1)
    write_scenes(scenes, tmp_path / "out", layout)
    content = json.loads((tmp_path / "out" / "annotations.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in content["categories"]] == list(food.class_names)
    assert [category["id"] for category in content["categories"]] == list(range(1, food.num_classes + 1))
    entries = content["annotations"]
    assert [entry["id"] for entry in entries] == list(range(1, len(entries) + 1))
    for image, scene in zip(content["images"], scenes, strict=True):
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as file:
            assert (np.asarray(file) == scene.image).all()
        assert (image["width"], image["height"]) == (SIDE, SIDE)
        of_image = [entry for entry in entries if entry["image_id"] == image["id"]]
        assert [entry["bbox"] for entry in of_image] == scene.boxes.tolist()
        assert [entry["category_id"] - 1 for entry in of_image] == scene.labels.tolist()
        if layout == "lvis":
            shown = {entry["category_id"] for entry in of_image}
            assert shown.isdisjoint(image["neg_category_ids"])
            assert len(shown) + len(image["neg_category_ids"]) == food.num_classes
    if layout == "lvis":
        for category in content["categories"]:
            of_category = [entry["image_id"] for entry in entries if entry["category_id"] == category["id"]]
            assert category["instance_count"] == len(of_category)
            assert category["image_count"] == len(set(of_category))
            assert category["frequency"] == ("r" if len(set(of_category)) <= 10 else "c")
    else:
        assert all(entry["iscrowd"] == 0 for entry in entries)


def test_a_folder_with_files_is_refused(food: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="must be new or empty"):
        write_scenes(Scenes(food, count=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
