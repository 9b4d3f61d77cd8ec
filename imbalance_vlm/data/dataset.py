"""Datasets: named classes, and splits of images with labels."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from imbalance_vlm.data.contents import content_hashes
from imbalance_vlm.data.pixels import read_rgb
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail

SPLITS = ("train", "val", "test")
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow recognises but cannot decode by itself, or that hold no pixels."""


def _image_suffixes() -> frozenset[str]:
    Image.init()
    formats = set(Image.OPEN) - _NO_IMAGES
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats)


IMAGE_SUFFIXES = _image_suffixes()
"""The suffixes of all formats that Pillow can decode."""
IMAGE_KINDS = ".jpg, .png, .tif, .webp or another suffix that Pillow reads"


def has_image_name(name: str) -> bool:
    """Whether a file is an image by its name: a known suffix, and not hidden.

    >>> has_image_name("1.JPG"), has_image_name("._1.jpg"), has_image_name("notes.txt")
    (True, False, False)
    """
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


class Images(Protocol):
    """A sequence of RGB images with a fingerprint of its content, by which features are cached."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Image.Image: ...
    def name(self, index: int) -> str:
        """What listings and messages call an image."""
        ...

    def take(self, keep: NDArray[np.int64]) -> Images:
        """The images of these rows, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images held in memory.

    Args:
        pixels: (N, H, W, 3) uint8.
        prefix: the beginning of the images' names in listings.
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
    """Images in files, decoded on access; see `imbalance_vlm.data.pixels`.

    The fingerprint covers each file's relative path and content: a folder that is moved or copied keeps its features,
    and two folders of the same names never share any. The files are read once for it; see
    `imbalance_vlm.data.contents`.
    """

    root: Path
    paths: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        hashes = content_hashes([self.root / path for path in self.paths])
        for path, content in zip(self.paths, hashes, strict=True):
            digest.update(f"{path}\0{content}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return read_rgb(self.root / self.paths[index])

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
        array = np.asarray(labels)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"`labels` must be whole numbers, got {array.dtype}")
        array = array.astype(np.int64)
        if array.shape != (len(images),):
            raise InputError(f"`labels` must hold one label for each of {len(images)} images, got {array.shape}")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", array)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, keep: NDArray[np.int64]) -> Split:
        return Split(self.images.take(keep), self.labels[keep])

    def counts(self, num_classes: int) -> NDArray[np.int64]:
        """(C,) number of images of each class."""
        return np.bincount(self.labels, minlength=num_classes)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.fingerprint.encode() + self.labels.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset.

    Args:
        name: its name in result tables.
        class_names: (C,) names as a person would write them, which the text tower reads.
        splits: "train" and "test", and "val" where there is one.
        templates: sentences with one `{}` for the class name; several are ensembled.
        flips: whether a mirrored image still shows its class ("arrow left" does not).
        skipped: paths of images left out because they are missing or unreadable.
        passed_over: number of entries of the source (files, rows, members) that are not used, by reason.
        left_out: number of images that the protocol does not use.
        notes: sentences about the source that a user should read.
        group_counts: (C,) counts by which classes are many, medium or few, where they differ from those of "train" (a
            thinned dataset whose groups are those of the full one).
        test_only: whether the dataset is for testing only (ImageNet-V2), without a "train" split.
        allow_empty: whether classes without a training image are accepted (see `LongTail`).

    Raises:
        InputError: a missing or empty split, a label outside [0, C), or a class name used twice.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    flips: bool = True
    skipped: Sequence[str] = field(default=())
    passed_over: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0
    notes: tuple[str, ...] = ()
    group_counts: NDArray[np.int64] | None = None
    test_only: bool = False
    allow_empty: bool = False

    def __post_init__(self) -> None:
        for required in ("test",) if self.test_only else ("train", "test"):
            if required not in self.splits:
                raise InputError(f"dataset '{self.name}' must have a '{required}' split, got {sorted(self.splits)}")
        # An accented letter may be one character or two; both look the same, also to a tokenizer.
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

    @property
    def num_images(self) -> int:
        return sum(map(len, self.splits.values()))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(C,) number of training images of each class; of test images, for a dataset that is for testing only."""
        return self.splits["test" if self.test_only else "train"].counts(self.num_classes)

    def long_tail(self, many: int = 100, few: int = 20) -> LongTail:
        """The long tail of the training images: "many" classes have more than `many`, "few" classes less than `few`.

        Raises:
            InputError: a class without a training image, unless `allow_empty`.
        """
        return LongTail(self.counts, self.class_names, many, few, self.allow_empty, self.group_counts)

    def require_training(self, what: str) -> None:
        """Refuse `what` for a dataset that is for testing only."""
        if self.test_only:
            raise InputError(f"{what} needs training images, but dataset '{self.name}' is for testing only")
