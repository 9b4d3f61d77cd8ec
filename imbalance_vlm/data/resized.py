"""Copies of large images at a smaller size, so that decoding and scaling them is done once for all epochs and runs.

A copy holds the plain pixels, (H, W, 3) uint8, with the shorter side at the size that was asked for, scaled as
torchvision scales PIL's images (bicubic): where that size is the model's own, and its preprocessing is bicubic, the
copy changes no number. Pixels and not PNG, which takes as long to decode as a JPEG file of twice the sides: a copy of
256 x 341 pixels takes 262 kB. Copies lie in the cache folder, never beside the user's images, each under a name made
of its image's path, size and time of change, and are written in one step: a kill leaves a whole copy or none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.data.dataset import ArrayImages, FileImages, Images, Split
from imbalance_vlm.files import cache_folder, write_atomically

VERSION = "1"
"""Raised whenever copies are made in another way."""


@dataclass(frozen=True, eq=False)
class ResizedImages:
    """Images through their copies, which are made when first asked for; an image that is no larger needs none.

    Args:
        images: the images.
        size: the shorter side of a copy.
        folder: takes the copies; None makes them anew each time.
    """

    images: Images
    size: int
    folder: Path | None

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.images.fingerprint} resized {self.size} {VERSION}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.path(index)
        if path is None:
            return resized(self.images[index], self.size)
        try:
            return Image.fromarray(np.load(path, allow_pickle=False))
        except (OSError, ValueError, TypeError, EOFError):  # there is none, or it is damaged
            pass
        image = self.images[index]
        if min(image.size) <= self.size:
            return image
        made = resized(image, self.size)
        write_atomically(path, lambda temporary: np.save(temporary, np.asarray(made)))
        return made

    def name(self, index: int) -> str:
        return self.images.name(index)

    def take(self, keep: NDArray[np.int64]) -> ResizedImages:
        return ResizedImages(self.images.take(keep), self.size, self.folder)

    def path(self, index: int) -> Path | None:
        """Where the copy of an image is, or will be."""
        if self.folder is None:
            return None
        if isinstance(self.images, FileImages):  # by the file alone: other lists of the same files share its copy
            file = (self.images.root / self.images.paths[index]).absolute()
            status = file.stat()
            of = f"{file}\0{status.st_size}\0{status.st_mtime_ns}"
        else:
            of = f"{self._of}\0{index}"
        key = hashlib.sha256(f"{VERSION}\0{of}".encode()).hexdigest()[:32]
        return self.folder / str(self.size) / key[:2] / f"{key}.npy"

    @cached_property
    def _of(self) -> str:
        return self.images.fingerprint


def resized(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side at `size`, bicubic; as it is where that is no smaller.

    >>> resized(Image.new("RGB", (30, 20)), 10).size
    (15, 10)
    """
    short, long = sorted(image.size)
    if short <= size:
        return image
    other = int(size * long / short)
    wide = image.width > image.height
    return image.resize((other, size) if wide else (size, other), Image.Resampling.BICUBIC)


def resized_split(split: Split, size: int, keep: bool = True, folder: Path | None = None) -> Split:
    """A split whose images come from copies.

    Args:
        split: images and labels.
        size: the shorter side of a copy; 0 leaves the split as it is, as images in memory do.
        keep: false scales each image anew and writes nothing.
        folder: takes the copies; left out, one in the cache.
    """
    if not size or isinstance(split.images, ArrayImages):
        return split
    place = (folder or cache_folder() / "images") if keep else None
    return Split(ResizedImages(split.images, size, place), split.labels)
