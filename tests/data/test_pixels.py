"""What a pixel means, and that every part of the package reads the same."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from imbalance_vlm import InputError
from imbalance_vlm.data.contents import image_faults
from imbalance_vlm.data.dataset import FileImages
from imbalance_vlm.data.decoders import decode, decode_on, encoded
from imbalance_vlm.data.pixels import read_rgb, to_rgb
from imbalance_vlm.data.resized_cache import ResizedImages
from imbalance_vlm.runs.classifier import find_images
from imbalance_vlm.verification.batch_inspection import load_image
from imbalance_vlm.verification.collection import ListedImage
from imbalance_vlm.verification.inspection import Location, inspect
from tests.data.images import smooth

FORMATS = ("png", "jpg", "tif", "webp", "gif", "bmp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B", "I", "F")


def image_of(mode: str) -> Image.Image:
    """An image of 30 x 20 pixels in a mode; a quarter of those with an alpha channel is transparent."""
    rgb = smooth(0, 30, 20)
    grey = np.asarray(rgb.convert("L"))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB") or rgb
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32) / 255)
    if mode in ("I;16", "I;16B"):
        return Image.frombytes(mode, rgb.size, (grey.astype("<u2" if mode == "I;16" else ">u2") * 257).tobytes())
    image = rgb.convert("P").convert("PA") if mode == "PA" else rgb.convert(mode)
    if mode.endswith("A"):
        alpha = np.full((20, 30), 255, np.uint8)
        alpha[:10, :15] = 0
        image.putalpha(Image.fromarray(alpha))
    return image


def written(mode: str, suffix: str, folder: Path) -> Path:
    """A file of a mode, where the format has it."""
    path = folder / f"a.{suffix}"
    try:
        image_of(mode).save(path)
    except (OSError, ValueError, KeyError) as error:
        pytest.skip(f"{suffix} has no mode {mode}: {error}")
    return path


def read_by_all(path: Path) -> list[NDArray[np.uint8]]:
    """What training, predictions, the decoders, smaller copies, `data verify` and `data show` read."""
    files = FileImages(path.parent, (path.name,))
    found = find_images([path]).images
    listed = ListedImage(path.name, "train", 0, location=Location(str(path)))
    assert inspect(Location(str(path))).problem == ""
    images = [files[0], found[0], ResizedImages(files, 999, path.parent / "copies")[0], load_image(listed)]
    tensors = [decode(path), decode_on(torch.device("cpu"), [encoded(path)])[0]]
    assert all(image.mode == "RGB" for image in images)
    return [np.asarray(image) for image in images] + [tensor.permute(1, 2, 0).numpy() for tensor in tensors]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_all_parts_read_the_same(mode: str, suffix: str, tmp_path: Path) -> None:
    path = written(mode, suffix, tmp_path)
    first, *others = read_by_all(path)
    assert first.shape == (20, 30, 3)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", ["png", "tif", ""])
def test_a_mode_shows_the_image_that_was_written(mode: str, suffix: str, tmp_path: Path) -> None:
    """In a file, and in memory."""
    pixels = np.asarray(read_rgb(written(mode, suffix, tmp_path)) if suffix else to_rgb(image_of(mode))).astype(int)
    grey = mode in ("L", "LA", "I;16", "I;16B", "I", "F")
    expected = np.asarray(smooth(0, 30, 20).convert("L" if grey else "RGB").convert("RGB")).astype(int)
    if mode == "1":
        expected = np.asarray(image_of(mode).convert("RGB")).astype(int)
    if mode.endswith("A"):
        expected[:10, :15] = 255
    coarse = {"P": 60, "PA": 60, "LAB": 20, "HSV": 8, "YCbCr": 4}
    assert np.abs(pixels - expected).max() <= coarse.get(mode, 0)


def test_ordinary_files_keep_their_bytes(tmp_path: Path) -> None:
    for mode, suffix in (("RGB", "jpg"), ("L", "jpg"), ("RGB", "png"), ("L", "png"), ("P", "png"), ("CMYK", "jpg")):
        path = written(mode, suffix, tmp_path)
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(image.convert("RGB")))


# -- orientation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_orientation_is_applied_once_by_all_parts(suffix: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 16, 8))
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright.transpose(turned[orientation]) if orientation > 1 else upright
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    for pixels in read_by_all(tmp_path / f"a.{suffix}"):
        assert pixels.shape == (16, 32, 3)
        assert np.abs(pixels[2:6, 2:14].astype(int) - (255, 0, 0)).max() < 30
        assert pixels[10:].min() > 225
    assert inspect(Location(str(tmp_path / f"a.{suffix}"))).width == 32


def test_an_image_that_was_read_is_not_turned_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png", exif=exif)
    assert to_rgb(to_rgb(read_rgb(tmp_path / "a.png"))).size == (8, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_leave_an_image_as_it_is(tmp_path: Path) -> None:
    for number, exif in enumerate((b"II*\0\xff\xff\xff\xff", b"no", b"MM\0*\0\0\0\x08\0\x09\x01")):
        path = tmp_path / f"{number}.jpg"
        smooth(0, 30, 20).save(path, exif=b"Exif\0\0" + exif)
        for pixels in read_by_all(path):
            assert pixels.shape == (20, 30, 3)


# -- transparency ----------------------------------------------------------------------------------------------------
def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(bits: int, colour: int, row: bytes, width: int, transparent: bytes) -> bytes:
    """A PNG of one row with a transparent colour."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", transparent) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(1, 0, b"\x40", 2, b"\0\0"), [255, 255]),
        (png(1, 0, b"\x40", 2, b"\0\1"), [0, 255]),
        (png(2, 0, b"\x60", 2, b"\0\2"), [85, 255]),
        (png(4, 0, b"\x5a", 2, b"\0\5"), [255, 170]),
        (png(8, 0, b"\x05\x55", 2, b"\0\5"), [255, 85]),
        (png(16, 0, b"\x64\x07\x64\x00", 2, b"\x64\x00"), [100, 255]),
        (png(8, 2, b"\1\1\1\2\2\2", 2, b"\0\1\0\1\0\1"), [255, 2]),
    ],
)
def test_a_transparent_colour_is_white(content: bytes, expected: list[int]) -> None:
    assert np.asarray(read_rgb(content))[0, :, 0].tolist() == expected


def test_transparent_palette_entries_are_white(tmp_path: Path) -> None:
    image = Image.frombytes("P", (3, 1), b"\0\1\2")
    image.putpalette([0, 0, 0, 10, 10, 10, 20, 20, 20])
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "shares.png", transparency=b"\0\xff\x80")
    image.save(tmp_path / "one.gif", transparency=1)
    for name, expected in (("one.png", [0, 255, 20]), ("shares.png", [255, 10, 137]), ("one.gif", [0, 255, 20])):
        for pixels in read_by_all(tmp_path / name):
            assert pixels[0, :, 0].tolist() == expected


def test_black_on_transparent_ground_is_a_drawing_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 20, 64, 30))
    image.save(tmp_path / "a.png")
    for pixels in read_by_all(tmp_path / "a.png"):
        assert pixels[25].max() == 0
        assert pixels[50].min() == 255


def test_a_transparent_16_bit_colour_is_refused() -> None:
    with pytest.raises(ValueError, match="16-bit colours is transparent.*alpha channel"):
        read_rgb(png(16, 2, b"\1\1\1\1\1\1", 1, b"\0\1\0\1\0\1"))


# -- depth -----------------------------------------------------------------------------------------------------------
def tiff(bits: int, kind: int, data: bytes, white_is_zero: bool = False) -> bytes:
    """A TIFF file of two grey pixels; `kind` is 1 for unsigned, 2 for signed and 3 for floating point numbers."""
    data += b"\0" * (len(data) % 2)
    numbers = {256: 2, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: 1, 339: kind}
    tags = sorted((numbers | {279: len(data)}).items())
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(16, 1, struct.pack("<HH", 0x1234, 0xFFFF)), [0x12, 255]),
        (tiff(16, 1, struct.pack("<HH", 0, 0)), [0, 0]),
        (tiff(16, 1, struct.pack("<HH", 0, 65535), white_is_zero=True), [255, 0]),
        (tiff(12, 1, b"\xff\xf8\x00"), [255, 128]),
        (tiff(16, 2, struct.pack("<hh", 0, 0x7FFF)), [0, 127]),
        (tiff(32, 1, struct.pack("<II", 256, 65535)), [1, 255]),
        (tiff(32, 3, struct.pack("<ff", 0.5, 1)), [128, 255]),
        (tiff(32, 3, struct.pack("<ff", 0, 1), white_is_zero=True), [255, 0]),
        (tiff(8, 1, b"\x05\x55", white_is_zero=True), [250, 170]),
        (b"P5 2 1 1000\n" + struct.pack(">HH", 500, 1000), [128, 255]),
    ],
)
def test_deep_grey_is_scaled_by_one_rule(content: bytes, expected: list[int]) -> None:
    assert np.asarray(read_rgb(content))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(16, 1, struct.pack("<HH", 0, 255)), "0 .black. to 65535 .white., got 0 to 255; scale them, or save it"),
        (tiff(12, 1, b"\x00\xf0\x00"), "to 4095 .white., got 0 to 15"),
        (tiff(16, 2, struct.pack("<hh", -1, 3000)), "got -1 to 3000"),
        (tiff(32, 1, struct.pack("<II", 0, 65536)), "got 0 to 65536"),
        (tiff(32, 3, struct.pack("<ff", 0, 255)), "floating point .* got 0 to 255; scale them"),
        (tiff(32, 3, struct.pack("<ff", 0, float("nan"))), "got nan to nan"),
    ],
)
def test_grey_that_cannot_be_read_faithfully_is_refused_by_all_parts(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        FileImages(tmp_path, ("a.tif",))[0]
    with pytest.raises(ValueError, match=message):
        decode(path)
    with pytest.raises(InputError, match=rf"a\.tif: .*{message}"):
        find_images([path])
    inspection = inspect(Location(str(path)))
    assert (inspection.problem, inspection.detail) == ("unreadable", image_faults([path])[0])


# -- files that Pillow reads as other pixels ---------------------------------------------------------------------------
def tiff_in_planes(bits: int) -> bytes:
    """A TIFF file of one uncompressed RGB pixel, one plane per channel."""
    data = bytes(range(3 * bits // 8))
    values = {256: [1], 257: [1], 258: [bits] * 3, 259: [1], 262: [2], 273: [0] * 3, 277: [3], 278: [1], 284: [2]}
    values[279] = [bits // 8] * 3
    start = 8 + 2 + 12 * len(values) + 4
    pixels = start + 3 * 6
    values[273] = [pixels + plane * bits // 8 for plane in range(3)]
    entries, further = b"", b""
    for tag, numbers in sorted(values.items()):
        content = struct.pack(f"<{len(numbers)}H", *numbers)
        where = struct.pack("<I", start + len(further)) if len(content) > 4 else content.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, 3, len(numbers)) + where
        further += content if len(content) > 4 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + further + data


def big_endian_compressed() -> bytes:
    """A TIFF file of two signed grey values in big-endian order, by PackBits."""
    data = b"\x03" + struct.pack(">hh", 100, 3000) + b"\0"
    numbers = {256: 2, 257: 1, 258: 16, 259: 32773, 262: 1, 273: 8, 277: 1, 278: 1, 279: 5, 339: 2}
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(numbers.items()))
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(numbers)) + entries + bytes(4)


def transparent_everywhere() -> bytes:
    image = smooth(0, 30, 20)
    image.putalpha(0)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff_in_planes(16), "channels of 16 bits are stored one after the other"),
        (big_endian_compressed(), "compressed and in big-endian order"),
        (tiff(8, 2, struct.pack("<bb", -1, 100)), "8 bits have a sign"),
        (transparent_everywhere(), "transparent everywhere, but has colours"),
    ],
)
def test_what_pillow_misreads_is_refused_by_all_parts(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for read in (read_rgb, decode):
        with pytest.raises(ValueError, match=message):
            read(path)
    assert message in image_faults([path])[0]
    assert message in inspect(Location(str(path))).detail


def test_planes_of_8_bits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_in_planes(8))
    assert all(pixels.tolist() == [[[0, 1, 2]]] for pixels in read_by_all(path))


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK"])
def test_a_turned_file_without_compression_is_read_by_its_path_as_by_its_bytes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image_of(mode).save(path, tiffinfo={274: 6})
    expected = np.rot90(np.asarray(to_rgb(image_of(mode))), -1)
    assert all(np.array_equal(pixels, expected) for pixels in read_by_all(path))


# -- other -----------------------------------------------------------------------------------------------------------
def test_colour_profiles_are_ignored(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    smooth(0, 30, 20).save(tmp_path / "a.png", icc_profile=profile)
    for pixels in read_by_all(tmp_path / "a.png"):
        np.testing.assert_array_equal(pixels, np.asarray(smooth(0, 30, 20)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_the_first_frame_is_read(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    for pixels in read_by_all(tmp_path / f"a.{suffix}"):
        assert pixels.min() == 255


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused_by_all_parts(suffix: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    for read in (read_rgb, decode, lambda file: decode_on(torch.device("cpu"), [encoded(file)])):
        with pytest.raises((OSError, ValueError)):
            read(path)
    assert image_faults([path]) != [""]
    assert inspect(Location(str(path))).problem
