"""Scenes for detection and segmentation with a long tail: several drawings of a dataset on one canvas.

Nothing is stored: a scene is computed from the dataset, a seed and its number. Drawings are opaque, a later one hides
what it covers of an earlier one, and boxes and masks are those of the visible pixels, so that they are exact.

[0] Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014 (the format)
[1] Gupta, Dollar, Girshick, LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019 (the format, and
    which categories are rare, common and frequent)
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically, write_text
from imbalance_vlm.progress import bar

SIDE = 128
"""Pixels of a canvas from side to side."""
OBJECTS = (3, 8)
"""The least and the most drawings of a scene."""
SIZES = (24, 48)
"""The least and the greatest length in pixels to which the longer side of an image is scaled."""
VISIBLE = 0.6
"""The least share of a drawing's pixels that later drawings leave visible."""
INK = 250
"""A pixel belongs to a drawing when one of its channels is darker."""
TRIES = 100
RARE, COMMON = 10, 100
"""The most images of a rare category, and of a common one, in LVIS."""

Format = Literal["coco", "lvis"]


@dataclass(frozen=True, eq=False)
class Scene:
    """One canvas with its objects, in the order in which they were drawn.

    Args:
        image: (S, S, 3) uint8.
        labels: (n,) int64 classes.
        boxes: (n, 4) int64: left, top, width and height of the visible pixels.
        masks: (n, S, S) bool: the visible pixels; no pixel is in two masks.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: NDArray[np.int64]
    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scenes:
    """A sequence of scenes, each of which is computed when it is asked for.

    Scene number i depends on the dataset, the split, the seed and i alone. Classes are drawn as often as the dataset
    trains on them, or with a tail of any factor; the drawing of a class is one of the split's at random.

    Args:
        dataset: images on white.
        split: whose images are drawn.
        count: number of scenes.
        seed: of all that is random.
        tail_factor: how many times as often the largest class of the training images is drawn as the smallest, with an
            exponential decay between them; 1 for all classes alike. None for their numbers of training images.

    Raises:
        InputError: no such split, no scenes, or a factor below 1.
    """

    dataset: Dataset
    split: str = "train"
    count: int = 1000
    seed: int = 0
    tail_factor: float | None = None

    def __post_init__(self) -> None:
        if self.split not in self.dataset.splits:
            raise InputError(
                f"`split` must be one of {', '.join(self.dataset.splits)} for dataset '{self.dataset.name}', got "
                f"{self.split!r}"
            )
        if self.count < 1 or self.seed < 0:
            raise InputError(f"`count` must be at least 1 and `seed` at least 0, got {self.count} and {self.seed}")
        if self.tail_factor is not None and not self.tail_factor >= 1:
            raise InputError(f"`tail_factor` must be at least 1, got {self.tail_factor:g}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = np.random.default_rng([self.seed, index])
        images, rows_of = self.dataset.splits[self.split].images, self._rows_of
        number = int(generator.integers(OBJECTS[0], OBJECTS[1] + 1))
        canvas = np.empty((SIDE, SIDE, 3), np.uint8)
        canvas[:] = generator.integers(200, 256, 3)
        labels: list[int] = []
        masks: list[NDArray[np.bool_]] = []
        areas: list[int] = []
        for label in generator.choice(len(rows_of), number, p=self.frequencies).tolist():
            image = images[int(generator.choice(rows_of[label]))]
            for _ in range(TRIES):
                pixels, shape = cutout(image, int(generator.integers(SIZES[0], SIZES[1] + 1)))
                height, width = shape.shape
                top, left = (int(generator.integers(0, SIDE - length + 1)) for length in (height, width))
                mask = np.zeros((SIDE, SIDE), bool)
                mask[top : top + height, left : left + width] = shape
                if all((old & ~mask).sum() >= VISIBLE * area for old, area in zip(masks, areas, strict=True)):
                    masks = [*(old & ~mask for old in masks), mask]
                    labels.append(label)
                    areas.append(int(shape.sum()))
                    canvas[mask] = pixels[shape]
                    break
        boxes = np.array([box_of(mask) for mask in masks], np.int64)
        return Scene(canvas, np.array(labels, np.int64), boxes, np.array(masks))

    @cached_property
    def _rows_of(self) -> list[NDArray[np.int64]]:
        """The rows of each class in the split."""
        labels = self.dataset.splits[self.split].labels
        return [np.flatnonzero(labels == label) for label in range(self.dataset.num_classes)]

    @cached_property
    def frequencies(self) -> NDArray[np.float64]:
        """(C,) the probability that a drawing is of each class."""
        weights = self.dataset.counts.astype(np.float64)
        if self.tail_factor is not None:
            ranks = np.empty(len(weights))
            ranks[np.argsort(-weights, kind="stable")] = np.arange(len(weights))
            weights = self.tail_factor ** (-ranks / max(len(weights) - 1, 1))
        weights *= [len(rows) > 0 for rows in self._rows_of]
        return weights / weights.sum()


def cutout(image: Image.Image, length: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image scaled to `length` pixels and cropped to its drawing: (h, w, 3) pixels, (h, w) its silhouette.

    White that a drawing encloses belongs to its silhouette; an image without a dark pixel is its own silhouette.
    """
    from scipy.ndimage import binary_fill_holes  # type: ignore[import-untyped]

    scale = length / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    shape = np.asarray(binary_fill_holes(pixels.min(axis=-1) < INK), bool)
    if not shape.any():
        shape[:] = True
    left, top, width, height = box_of(shape)
    cropped = np.s_[top : top + height, left : left + width]
    return pixels[cropped], shape[cropped]


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the smallest box around the pixels of a mask.

    >>> box_of(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1, 1, 2, 1)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


# -- export ----------------------------------------------------------------------------------------------------------
def write_scenes(scenes: Scenes, folder: Path, layout: Format = "coco") -> None:
    """Write images/000001.png and so on, and last annotations.json, in the format of COCO or LVIS.

    Raises:
        InputError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"the folder for the scenes must be new or empty, got {folder}; choose another one")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    with bar(len(scenes), "draw", "scene") as progress:
        for number in range(len(scenes)):
            scene = scenes[number]
            save = partial(Image.fromarray(scene.image).save, format="PNG")
            write_atomically(folder / "images" / file_name(number), save)
            entries.append([annotation(scene, row) for row in range(len(scene.labels))])
            progress.update()
    write_text(folder / "annotations.json", json.dumps(content_of(scenes, entries, layout)))


def file_name(number: int) -> str:
    """The file of a scene.

    >>> file_name(0)
    '000001.png'
    """
    return f"{number + 1:06d}.png"


def annotation(scene: Scene, row: int) -> dict[str, Any]:
    """What both formats say of one object; its mask is a run-length encoding that is not compressed."""
    mask = scene.masks[row]
    return {
        "category_id": int(scene.labels[row]) + 1,
        "bbox": scene.boxes[row].tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
    }


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """The lengths of the runs of a mask, column by column; the first one is of pixels outside, and may be 0.

    >>> run_lengths(np.array([[1, 0], [1, 1]], bool))
    [0, 2, 1, 1]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths: list[int] = np.diff(np.r_[0, changes, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def content_of(scenes: Scenes, entries: list[list[dict[str, Any]]], layout: Format) -> dict[str, Any]:
    """The content of annotations.json: identifiers count from 1, in the order of scenes and of classes.

    Args:
        scenes: the scenes.
        entries: the annotations of each scene, as `annotation` gives them.
        layout: "lvis" adds how frequent each category is, and which categories a scene does not show.
    """
    names = scenes.dataset.class_names
    lvis = layout == "lvis"
    shown = [{entry["category_id"] for entry in of_scene} for of_scene in entries]
    in_images = Counter(category for categories in shown for category in categories)
    instances = Counter(entry["category_id"] for of_scene in entries for entry in of_scene)
    images: list[dict[str, Any]] = []
    for number, categories in enumerate(shown):
        image: dict[str, Any] = {"id": number + 1, "width": SIDE, "height": SIDE, "file_name": file_name(number)}
        if lvis:
            absent = sorted(set(range(1, len(names) + 1)) - categories)
            image |= {
                "coco_url": f"images/{file_name(number)}",
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": [],
            }
        images.append(image)
    flat = [(number + 1, entry) for number, of_scene in enumerate(entries) for entry in of_scene]
    return {
        "info": {
            "description": f"{len(scenes)} scenes of drawings of {scenes.dataset.name} ({scenes.split}), seed "
            f"{scenes.seed}"
        },
        "licenses": [],
        "images": images,
        "annotations": [
            {"id": at, "image_id": image, **entry, **({} if lvis else {"iscrowd": 0})}
            for at, (image, entry) in enumerate(flat, 1)
        ],
        "categories": [
            {"id": label, "name": name}
            | (
                {
                    "frequency": frequency(in_images[label]),
                    "image_count": in_images[label],
                    "instance_count": instances[label],
                }
                if lvis
                else {"supercategory": scenes.dataset.name}
            )
            for label, name in enumerate(names, 1)
        ],
    }


def frequency(images: int) -> str:
    """LVIS's letter for a category in so many images: r for rare, c for common, f for frequent.

    >>> frequency(10), frequency(11), frequency(101)
    ('r', 'c', 'f')
    """
    return "r" if images <= RARE else "c" if images <= COMMON else "f"
