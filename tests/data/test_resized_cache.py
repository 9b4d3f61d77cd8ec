"""Copies of images at a smaller size: the same numbers, outside of the user's folder, complete or absent."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from imbalance_vlm import InputError, files
from imbalance_vlm.data.dataset import ArrayImages, FileImages, Images, Split
from imbalance_vlm.data.loader import PixelLoader
from imbalance_vlm.data.resized_cache import ResizedImages, read_copy, resized, resized_split, write_copy
from imbalance_vlm.data.webdataset import TarImages
from tests.data.images import preprocessing, smooth

SIZES = ((60, 40), (41, 97), (32, 32), (20, 90), (12, 10))


@pytest.fixture
def photographs(tmp_path: Path) -> FileImages:
    root = tmp_path / "mine"
    root.mkdir()
    for number, (width, height) in enumerate(SIZES):
        smooth(number, width, height).save(root / f"{number}.{'jpg' if number % 2 else 'png'}")
    return FileImages(root, tuple(sorted(path.name for path in root.iterdir())))


def pixels(images: Images, size: int) -> Iterator[torch.Tensor]:
    return PixelLoader(images, [preprocessing(size)], workers=0).batches([list(range(len(images)))])


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_scaling_equals_torchvision(width: int, height: int) -> None:
    image = smooth(0, width, height)
    expected = resize(image, [16], InterpolationMode.BICUBIC) if min(width, height) > 16 else image
    assert np.array_equal(np.asarray(resized(image, 16)), np.asarray(expected))


def test_copies_at_the_models_size_change_no_number(photographs: FileImages, tmp_path: Path) -> None:
    (expected,) = pixels(photographs, 16)
    copies = ResizedImages(photographs, 16, tmp_path / "copies")
    for _ in range(2):  # when the copies are made, and when they are read
        (actual,) = pixels(copies, 16)
        assert torch.equal(actual, expected)


def test_a_copy_is_read_and_the_image_is_not(photographs: FileImages, tmp_path: Path) -> None:
    copies = ResizedImages(photographs, 16, tmp_path / "copies")
    before = {path: path.stat().st_mtime_ns for path in photographs.root.iterdir()}
    expected = [np.asarray(copies[row]) for row in range(len(copies))]
    assert {path: path.stat().st_mtime_ns for path in photographs.root.iterdir()} == before, "nothing is written there"
    files_made = [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]
    assert len(files_made) == len(SIZES) - 1, "a small image needs no copy"
    assert {path.suffix for path in files_made} == {".npy"}
    for path in files_made:
        write_copy(path, ImageChops.invert(read_copy(path) or Image.new("RGB", (1, 1))))
    larger = [row for row in range(len(copies)) if min(copies.images[row].size) > 16]
    assert all(np.array_equal(np.asarray(copies[row]), 255 - expected[row]) for row in larger)


def test_a_changed_image_gets_a_new_copy(photographs: FileImages, tmp_path: Path) -> None:
    copies = ResizedImages(photographs, 16, tmp_path / "copies")
    copies[0]
    path, fingerprint = copies.path(0), copies.fingerprint
    smooth(9, 60, 40).save(photographs.root / photographs.paths[0])
    again = ResizedImages(FileImages(photographs.root, photographs.paths), 16, tmp_path / "copies")
    assert again.path(0) != path
    assert again.fingerprint != fingerprint
    assert np.array_equal(np.asarray(again[0]), np.asarray(resized(smooth(9, 60, 40), 16)))
    assert ResizedImages(photographs, 24, tmp_path / "copies").path(0) != again.path(0)
    assert ResizedImages(photographs, 24, None).fingerprint != again.fingerprint


def test_other_lists_of_the_same_files_share_copies(photographs: FileImages, tmp_path: Path) -> None:
    copies = ResizedImages(photographs, 16, tmp_path / "copies")
    taken = copies.take(np.array([3, 1]))
    assert (taken.path(1), taken.name(1), len(taken)) == (copies.path(1), copies.name(1), 2)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY half", b"something else", None])
def test_a_damaged_copy_is_replaced(content: bytes | None, photographs: FileImages, tmp_path: Path) -> None:
    """Also one whose pixels have become zeros."""
    copies = ResizedImages(photographs, 16, tmp_path / "copies")
    expected, path = np.asarray(copies[0]), copies.path(0)
    assert path is not None
    written = path.read_bytes()
    path.write_bytes(written[:-100] + bytes(96) + written[-4:] if content is None else content)
    assert np.array_equal(np.asarray(copies[0]), expected)
    assert np.array_equal(np.load(path), expected)


def test_a_full_disk_is_reported_and_leaves_nothing(
    photographs: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"^no space left on the disk while writing .*free some space"):
        list(pixels(ResizedImages(photographs, 16, tmp_path / "copies"), 16))
    assert not [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]


def test_images_in_archives_have_copies_too(tmp_path: Path) -> None:
    content = []
    with (tmp_path / "a.tar").open("wb") as stream:
        for number in range(2):
            start = stream.tell()
            smooth(number, 60, 40).save(stream, "PNG")
            content.append((0, start, stream.tell() - start))
    images = TarImages((tmp_path / "a.tar",), np.array(content), ("0", "1"))
    copies = ResizedImages(images, 16, tmp_path / "copies")
    (expected,) = pixels(images, 16)
    for _ in range(2):
        (actual,) = pixels(copies, 16)
        assert torch.equal(actual, expected)
    assert len(list((tmp_path / "copies").rglob("*.npy"))) == 2


def test_images_in_memory_are_not_copied(photographs: FileImages, tmp_path: Path) -> None:
    split = Split(photographs, np.zeros(len(SIZES), np.int64))
    assert resized_split(split, 0) is split
    memory = Split(ArrayImages(np.zeros((1, 4, 4, 3), np.uint8)), [0])
    assert resized_split(memory, 2) is memory
    kept = resized_split(split, 16).images
    assert isinstance(kept, ResizedImages)
    assert kept.folder == tmp_path / "cache" / "images"
    plain = resized_split(split, 16, keep=False)
    assert plain.images[0].size == (24, 16)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    copies = ResizedImages(FileImages(tmp_path, ("bad.png",)), 16, tmp_path / "copies")
    with pytest.raises(InputError, match=r"image 'bad\.png' cannot be read"):
        list(pixels(copies, 16))
    assert (tmp_path / "bad.png").read_bytes() == b"no image"
