"""Reading of images: any image that Pillow opens becomes upright 8-bit RGB, in the same way everywhere in the package.

- Orientation in Exif or XMP metadata is applied.
- Transparent parts are composed on white: alpha channels, transparent palette entries and transparent colours.
- 16-bit channels keep their upper 8 bits, 12-bit ones likewise. 32-bit integers are read as 16-bit numbers. Floating
  point values lie between 0 (black) and 1 (white). Grey values outside of these ranges, and those that would all become
  black although they are not, are refused.
- Palettes, YCbCr, CMYK, HSV and Lab are converted to RGB.
- Embedded colour profiles and gamma values are ignored: the towers were trained, and the published numbers measured,
  without them, and converting a photograph would take several times as long as decoding it.
- Of several frames, the first is read. An image that ends too early is refused, and so are the kinds of TIFF files that
  Pillow opens but reads as other pixels.
"""

from __future__ import annotations

import io
import struct
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

PIXELS_VERSION = 2
"""Raised whenever an image is read differently; part of the keys of cached features, copies and inspections."""

_ORIENTATION, _PHOTOMETRIC, _BITS, _PLANES, _SAMPLES = 0x0112, 262, 258, 284, 339
"""Tags of Exif and TIFF."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image of each orientation upright."""


def read_rgb(source: Path | bytes | BinaryIO, reduced: bool = False) -> Image.Image:
    """Read an image file as upright RGB.

    Args:
        source: the file, its content, or a stream of it.
        reduced: whether JPEG files are decoded at an eighth of their size, to check that they are intact.

    Raises:
        OSError: a file that cannot be opened, or an image that is damaged.
        ValueError: an image that is damaged in another way, or cannot be read faithfully.
    """
    try:
        with _opened(source) as stream, Image.open(stream) as image:
            if reduced:
                image.draft("RGB", (32, 32))
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(
            "cannot identify the image: it is damaged, or in a format that Pillow does not know"
        ) from error
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types for damaged images
        raise ValueError(str(error) or type(error).__name__) from error


def _opened(source: Path | bytes | BinaryIO) -> AbstractContextManager[IO[bytes]]:
    """A stream: by a path, Pillow maps plain TIFF files into memory, and then garbles those that are turned."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright RGB; see the module. An image that is RGB already keeps its values.

    Raises:
        OSError: a damaged image.
        ValueError: values that cannot be read faithfully.
    """
    raw_mode = _raw_mode(image)  # known until the image is loaded
    _check_tiff(image)
    image.load()
    turn = _TURNS.get(orientation(image))
    if image.mode.startswith(("I", "F")):
        image = _from_deep_grey(image)
    elif image.has_transparency_data:
        image = _on_white(image, raw_mode)
    elif image.mode == "LAB":
        image = _from_lab(image)
    rgb = image.convert("RGB")
    rgb.info = {}  # orientation and transparency have been applied
    return rgb.transpose(turn) if turn is not None else rgb


def orientation(image: Image.Image) -> int:
    """The orientation in an image's metadata, 1 to 8; 1, upright, where it has none or its metadata are damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, for PNG; "" where this is not known."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if image.format == "PNG" and tiles else ""
    return arguments if isinstance(arguments, str) else ""


def _check_tiff(image: Image.Image) -> None:
    """Refuse, before it is loaded, a TIFF file that Pillow would read as other pixels without an error."""
    tags: Any = getattr(image, "tag_v2", {})
    tiles = getattr(image, "tile", None)
    if not tags or not tiles:
        return
    bits = max(tags.get(_BITS, (1,)))
    compressed = tiles[0][0] == "libtiff"
    problem = ""
    if tags.get(_PLANES) == 2 and bits > 8 and len(image.getbands()) > 1 and not compressed:
        problem = f"its channels of {bits} bits are stored one after the other without compression"
    elif compressed and tags.prefix == b"MM" and image.mode in ("I", "F"):
        problem = "its signed or floating point values are compressed and in big-endian order"
    elif bits == 8 and 2 in tags.get(_SAMPLES, ()):
        problem = "its values of 8 bits have a sign"
    if problem:
        raise ValueError(f"{problem}, which Pillow does not read correctly; save it as PNG")


def _on_white(image: Image.Image, raw_mode: str) -> Image.Image:
    if "transparency" in image.info and raw_mode.startswith("RGB;16"):
        raise ValueError(
            "one of its 16-bit colours is transparent, which Pillow does not tell from similar ones; save it with an "
            "alpha channel, or with 8 bits per channel"
        )
    if "transparency" in image.info and raw_mode in ("L;2", "L;4"):  # the shades are scaled to 255, this one is not
        image.info["transparency"] *= 255 // (2 ** int(raw_mode[2:]) - 1)
    if image.mode == "La":
        image = image.convert("LA")
    layer = image.convert("RGBA")
    extrema: Any = layer.getextrema()
    *colours, alpha = extrema
    if alpha == (0, 0) and any(low < high for low, high in colours):
        raise ValueError("it is transparent everywhere, but has colours; save it without its alpha channel")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """8-bit grey of 12, 16 or 32 bits per pixel."""
    tags: Any = getattr(image, "tag_v2", {})
    values: NDArray[Any] = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode.startswith("F"):
        if not 0 <= low <= high <= 1:  # also nan
            raise ValueError(
                f"its floating point values must lie between 0 (black) and 1 (white), got {low:g} to {high:g}; scale "
                "them, or save it with 8 bits per channel"
            )
        grey = np.rint(values * 255).astype(np.uint8)
    else:
        bits = 12 if tuple(tags.get(_BITS, ())) == (12,) else 16
        grey = (values.astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8)
        if low < 0 or high >= 2**bits or (high > 0 and not grey.any()):
            raise ValueError(
                f"its grey values must use the range from 0 (black) to {2**bits - 1} (white), got {low} to {high}; "
                "scale them, or save it with 8 bits per channel"
            )
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white in this file; Pillow turns 8 bits round, but not these
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if converted is None:  # only for a conversion in place
        raise ValueError("its Lab colours cannot be converted")
    return converted
