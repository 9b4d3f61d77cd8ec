"""Image files to uint8 tensors: upright JPEG photographs by torchvision, on the CPU or on a GPU, all others by Pillow.

Both read the same pixels; see `imbalance_vlm.data.pixels`. Measured on a JPEG file of 500 x 375 pixels and 81 kB,
scaled to 224: both libraries decode with libjpeg-turbo, to equal pixels, PIL in .92 and torchvision in .88 ms. The
difference is in the preprocessing that follows: 2.25 ms on PIL images, .59 ms on uint8 tensors, with results that
differ by at most one step of 255. It is therefore used only on request, and cached features are always computed with
PIL. torchvision has announced that its decoders will be removed; PIL takes over where they are missing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imbalance_vlm.data.pixels import orientation, read_rgb

START, END = b"\xff\xd8", b"\xff\xd9"
"""The first and last bytes of a JPEG file."""


def decode(path: Path) -> Tensor:
    """Decode an image file to (3, H, W) uint8."""
    image = encoded(path)
    return image if image.ndim == 3 else decode_on(torch.device("cpu"), [image])[0]


def encoded(path: Path) -> Tensor:
    """Read a file for `decode_on`: a plain JPEG file as its bytes, (n,) uint8; any other decoded, (3, H, W) uint8."""
    content = path.read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if _is_plain(content) else _by_pil(content)


def _is_plain(content: bytes) -> bool:
    """Whether a file is an upright JPEG image in RGB or grey, with its end: all decoders give the same pixels."""
    if not (content.startswith(START) and content.endswith(END)):
        return False
    with suppress(Exception), Image.open(io.BytesIO(content)) as image:  # PIL reports what is wrong with it
        return image.mode in ("RGB", "L") and orientation(image) == 1
    return False


def decode_on(device: torch.device, files: Sequence[Tensor]) -> list[Tensor]:
    """Finish on the device what `encoded` has read; a GPU decodes all JPEG files in one call.

    The GPU's decoder rounds differently from the CPU's, by a step or two of 255. PIL decodes what torchvision refuses.

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
        decoded = [_by_pil(files[row].numpy().tobytes()).to(device) for row in jpeg_rows]
    for row, image in zip(jpeg_rows, decoded, strict=True):
        images[row] = image
    return images


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _by_pil(content: bytes) -> Tensor:
    return to_tensor(read_rgb(content))


@contextmanager
def _no_deprecation_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
