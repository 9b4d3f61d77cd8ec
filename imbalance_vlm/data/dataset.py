"""What a dataset is: named classes and splits of (image, label) pairs."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from imbalance_vlm.errors import InputError


class Images(Protocol):
    """A sequence of RGB images with a fingerprint of its content."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Image.Image: ...
    def name(self, index: int) -> str: ...
    def take(self, keep: NDArray[np.int64]) -> Images: ...


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB. Where Pillow cuts 16 bits off at 255, which leaves white, they are scaled."""
    if image.mode.startswith("I"):  # "I;16" and its kin; "I" in older versions of Pillow
        deep = np.asarray(image)
        image = Image.fromarray((deep >> 8 if deep.max() > 255 else deep).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images held in memory.

    Args:
        pixels: (N, H, W, 3) uint8.
        prefix: what the names of the images begin with in listings.
    """

    pixels: NDArray[np.uint8]
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != np.uint8:
            raise InputError(f"`pixels` must be (N, H, W, 3) uint8, got {self.pixels.shape} {self.pixels.dtype}")

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return f"{self.prefix}{index}"

    def take(self, keep: NDArray[np.int64]) -> ArrayImages:
        return ArrayImages(self.pixels[keep], self.prefix)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in files, decoded when asked for.

    The fingerprint is made of each file's relative path, size and modification time: reading the names of a million
    files takes seconds, reading their bytes hours.
    """

    root: Path
    paths: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = (self.root / path).stat()
            except OSError as error:  # a link to nothing, or no permission; whoever reads the image says so
                digest.update(f"{path}\0{error.errno}\n".encode())
                continue
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        with Image.open(self.root / self.paths[index]) as image:
            return rgb(image)

    def name(self, index: int) -> str:
        return self.paths[index]

    def take(self, keep: NDArray[np.int64]) -> FileImages:
        return FileImages(self.root, tuple(self.paths[i] for i in keep))


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels: `labels` is (N,) int64, in [0, C)."""

    images: Images
    labels: NDArray[np.int64]

    def __init__(self, images: Images, labels: ArrayLike) -> None:
        given = np.asarray(labels)
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise InputError(f"`labels` must be whole numbers, got {given.dtype}")
        array = given.astype(np.int64)
        if array.shape != (len(images),):
            raise InputError(f"`labels` must hold one label for each of {len(images)} images, got {array.shape}")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", array)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, keep: NDArray[np.int64]) -> Split:
        return Split(self.images.take(keep), self.labels[keep])

    def counts(self, num_classes: int) -> NDArray[np.int64]:
        """(C,) images of each class."""
        return np.bincount(self.labels, minlength=num_classes)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.fingerprint.encode() + self.labels.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset.

    Args:
        name: what the result tables call it.
        class_names: (C,) names as a person would write them; they are also what the text tower reads.
        splits: "train" and "test", and "val" where there is one.
        templates: sentences with one `{}` for the class name; several are ensembled.
        flips: whether a mirrored image still shows its class ("arrow left" does not survive it).
        skipped: paths of images left out because they could not be read.
        group_counts: (C,) the counts that make a class many, medium or few, where they are not those of "train" (a set
            thinned further whose groups stay those of the whole).
        test_only: a set made for testing alone (ImageNet-V2): there is no "train".

    Raises:
        InputError: a missing split, no images, a label outside [0, C), or a class name used twice.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    flips: bool = True
    skipped: Sequence[str] = field(default=())
    group_counts: NDArray[np.int64] | None = None
    test_only: bool = False

    def __post_init__(self) -> None:
        for required in ("test",) if self.test_only else ("train", "test"):
            if required not in self.splits:
                raise InputError(f"dataset '{self.name}' must have a '{required}' split, got {sorted(self.splits)}")
        # An accented letter may be one character or two, which look the same and are the same to a tokenizer.
        times = Counter(unicodedata.normalize("NFC", name) for name in self.class_names)
        repeated = sorted(name for name, count in times.items() if count > 1)
        if repeated:
            raise InputError(
                f"class names of dataset '{self.name}' must differ, got {repeated[0]!r} more than once; "
                "tell the classes apart by their names (the text tower sees nothing else)"
            )
        if self.group_counts is not None and self.group_counts.shape != (self.num_classes,):
            raise InputError(
                f"`group_counts` of dataset '{self.name}' must hold a count for each of {self.num_classes} classes, "
                f"got shape {self.group_counts.shape}"
            )
        for split_name, split in self.splits.items():
            if len(split) == 0:
                raise InputError(f"split '{split_name}' of dataset '{self.name}' holds no images")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                row = int(np.flatnonzero((split.labels < 0) | (split.labels >= self.num_classes))[0])
                raise InputError(
                    f"labels of split '{split_name}' of dataset '{self.name}' must lie in 0..{self.num_classes - 1} "
                    f"({self.num_classes} classes), got {int(split.labels[row])} for image {split.images.name(row)!r}"
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(C,) training images of each class; of a set for testing alone, its test images."""
        return self.splits["test" if self.test_only else "train"].counts(self.num_classes)

    def require_training(self, what: str) -> None:
        """Refuses `what` for a set that is for testing alone."""
        if self.test_only:
            raise InputError(f"{what} needs training images, and dataset '{self.name}' is for testing alone")

    def with_templates(self, templates: tuple[str, ...]) -> Dataset:
        return replace(self, templates=templates)
