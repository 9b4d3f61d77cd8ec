"""Copies of large images at a smaller size, so that they are decoded and scaled once for all epochs and runs.

A copy holds plain pixels, (H, W, 3) uint8, with the shorter side at the requested size, scaled as torchvision scales
PIL images (bicubic): if that is the model's input size, and its preprocessing is bicubic, no number changes. Pixels are
stored rather than PNG files, which take as long to decode as a JPEG file of twice the width and height; a copy of
256 x 341 pixels takes 262 kB. Copies lie in the cache folder, never beside the user's images, named by a hash of the
image's place and state, so that reading a copy does not read the image. They end with a checksum, and are written
atomically: a kill leaves a complete copy or none, and a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.data.dataset import ArrayImages, FileImages, Images, Split
from imbalance_vlm.data.pixels import PIXELS_VERSION
from imbalance_vlm.data.state_table import file_state
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, write_atomically

VERSION = "2"
"""Increased whenever copies are made differently."""


_VERSIONS = f"{VERSION}.{PIXELS_VERSION}"


@dataclass(frozen=True, eq=False)
class ResizedImages:
    """Images read through their copies, which are made on first access; an image that is no larger needs none.

    Args:
        images: the images.
        size: the shorter side of a copy, in pixels.
        folder: where the copies are kept; None scales each image on every access.
    """

    images: Images
    size: int
    folder: Path | None

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.images.fingerprint} resized {self.size} {_VERSIONS}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.path(index)
        if path is None:
            return resized(self.images[index], self.size)
        copy = read_copy(path)
        if copy is not None:
            return copy
        image = self.images[index]
        if min(image.size) <= self.size:
            return image
        copy = resized(image, self.size)
        try:
            write_copy(path, copy)
        except InputError as error:
            raise InputError(f"{error}; or set encoder.resized to 0, for no smaller copies of images") from error
        return copy

    def name(self, index: int) -> str:
        return self.images.name(index)

    def take(self, keep: NDArray[np.int64]) -> ResizedImages:
        return ResizedImages(self.images.take(keep), self.size, self.folder)

    def path(self, index: int) -> Path | None:
        """The file of an image's copy, whether or not it exists yet; None without a folder."""
        if self.folder is None:
            return None
        if isinstance(self.images, FileImages):  # by the file only, so that all lists of the same files share copies
            file = (self.images.root / self.images.paths[index]).absolute()
            source = f"{file}\0{file_state(file.stat())}"
        else:
            source = f"{self._images_fingerprint}\0{index}"
        key = hashlib.sha256(f"{_VERSIONS}\0{source}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.folder / str(self.size) / key[:2] / f"{key}.npy"

    @cached_property
    def _images_fingerprint(self) -> str:
        return self.images.fingerprint


def write_copy(path: Path, image: Image.Image) -> None:
    """Write an RGB image as an array with a checksum after it."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(image))
    content = stream.getvalue()
    write_atomically(path, lambda temporary: temporary.write_bytes(content + _checksum(content)))


def read_copy(path: Path) -> Image.Image | None:
    """The image that `write_copy` wrote; None where there is none, or a damaged one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content[-4:] != _checksum(memoryview(content)[:-4]):
        return None
    try:
        return Image.fromarray(np.load(io.BytesIO(content), allow_pickle=False))
    except (ValueError, TypeError, EOFError):
        return None


def _checksum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def resized(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side scaled to `size`, bicubic; unchanged where it is no larger.

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
    """A split whose images are read through copies; images in memory stay as they are.

    Args:
        split: images and labels.
        size: the shorter side of a copy, in pixels; 0 for no copies.
        keep: false scales each image on every access and writes nothing.
        folder: where the copies are kept; None for a folder in the cache.
    """
    if not size or isinstance(split.images, ArrayImages):
        return split
    place = (folder or cache_folder() / "images") if keep else None
    return Split(ResizedImages(split.images, size, place), split.labels)
