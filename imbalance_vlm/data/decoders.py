"""Image files to uint8 tensors, by torchvision, on the CPU or on a GPU, with PIL for what torchvision does not read.

Measured on a JPEG file of 500 x 375 pixels and 81 kB, scaled to 224: both libraries decode with libjpeg-turbo, to equal
pixels, PIL in .92 and torchvision in .88 ms; PNG is lossless, so those files agree exactly. The difference is in the
preprocessing that follows: 2.25 ms on PIL images, .59 ms on uint8 tensors, with results that differ by at most one step
of 255. It is therefore used only on request, and cached features are always computed with PIL. torchvision has
announced that its decoders will be removed; PIL takes over where they are missing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imbalance_vlm.data.dataset import rgb

JPEG = b"\xff\xd8"
JPEG_SUFFIXES = {".jpg", ".jpeg"}
SUFFIXES = {*JPEG_SUFFIXES, ".png"}
"""Files that torchvision decodes to the same pixels as PIL."""


def decode(path: Path) -> Tensor:
    """Decode an image file to (3, H, W) uint8; PIL reads what torchvision does not."""
    if path.suffix.lower() in SUFFIXES:
        import torchvision.io

        content = torch.from_numpy(np.fromfile(path, np.uint8))
        try:
            with _no_deprecation_warnings():
                image: Tensor = torchvision.io.decode_image(content, torchvision.io.ImageReadMode.RGB)
            if image.dtype == torch.uint8:  # some PNG files have 16 bits
                return image
        except (RuntimeError, AttributeError):
            pass  # CMYK, a wrong suffix, a damaged file, or a torchvision without decoders
    with Image.open(path) as opened:
        return to_tensor(rgb(opened))


def encoded(path: Path) -> Tensor:
    """Read a file for `decode_on`: a JPEG file as its bytes, (n,) uint8, any other decoded, (3, H, W) uint8."""
    if path.suffix.lower() in JPEG_SUFFIXES:
        content = np.fromfile(path, np.uint8)
        if content[:2].tobytes() == JPEG:
            return torch.from_numpy(content)
    return decode(path)


def decode_on(device: torch.device, files: Sequence[Tensor]) -> list[Tensor]:
    """Finish on the device what `encoded` has read; a GPU decodes all JPEG files in one call.

    The GPU's decoder rounds differently from the CPU's, by a step or two of 255. PIL decodes what it does not read
    (CMYK).

    Args:
        device: of the result.
        files: results of `encoded`.

    Returns:
        (3, H, W) uint8 images on the device.

    Raises:
        OSError: a file that neither decoder reads.
    """
    import torchvision.io

    jpeg_rows = [row for row, content in enumerate(files) if content.ndim == 1]
    images = [content if content.ndim == 1 else content.to(device) for content in files]
    mode = torchvision.io.ImageReadMode.RGB
    try:
        with _no_deprecation_warnings():
            decoded = torchvision.io.decode_jpeg([files[row] for row in jpeg_rows], mode, device) if jpeg_rows else []
    except (RuntimeError, AttributeError):
        decoded = [to_tensor(_opened(files[row])).to(device) for row in jpeg_rows]
    for row, image in zip(jpeg_rows, decoded, strict=True):
        images[row] = image
    return images


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _opened(content: Tensor) -> Image.Image:
    with Image.open(io.BytesIO(content.numpy().tobytes())) as image:
        return rgb(image)


@contextmanager
def _no_deprecation_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
