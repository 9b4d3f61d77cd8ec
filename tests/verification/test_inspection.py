"""The inspection of one image: its problem, and its hashes."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm.verification import batch_inspection, inspection
from imbalance_vlm.verification.batch_inspection import inspect_all
from imbalance_vlm.verification.inspection import (
    Inspection,
    Location,
    inspect,
    inspect_bytes,
    perceptual_hash,
    state_of,
)


def photograph(seed: int = 0, size: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return blocks.resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def huge_png() -> bytes:
    """60,000 x 60,000 pixels by its header, a hundred bytes in all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_complete_image_has_no_problem_and_both_hashes(kind: str) -> None:
    result = inspect_bytes(encoded(photograph(), kind))
    assert (result.problem, result.width, result.height) == ("", 64, 64)
    assert len(result.content) == len(result.perceptual_hash) == 32


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "zero_byte"), (b"hello", "unreadable"), (b"\xff\xd8\xff\xe0", "unreadable"), (huge_png(), "bomb")],
)
def test_other_content_is_classified(content: bytes, problem: str) -> None:
    assert inspect_bytes(content).problem == problem


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"quality": 30}])
def test_the_reduced_decode_refuses_the_same_files_as_a_full_one(settings: dict[str, object]) -> None:
    whole = encoded(photograph(size=200), "JPEG", **settings)
    cuts = [*range(700, len(whole), 211), *(len(whole) - back for back in range(1, 12)), len(whole)]
    refused = []
    for cut in cuts:
        try:
            Image.open(io.BytesIO(whole[:cut])).load()
            expected = ""
        except OSError:
            expected = "truncated"
        refused.append(expected)
        assert inspect_bytes(whole[:cut]).problem == expected, cut
    assert "truncated" in refused
    assert not refused[-1]


def test_half_a_png_is_truncated() -> None:
    whole = encoded(photograph(), "PNG")
    assert inspect_bytes(whole[: len(whole) // 2]).problem == "truncated"


def reference_hash(image: Image.Image) -> str:
    """The hash bit by bit, from its definition: 9 x 9 boxes, compared with the neighbour to the right and below."""
    grey = np.asarray(image.convert("L"), np.float64)
    side = grey.shape[0] // 9
    boxes = [[grey[r * side : (r + 1) * side, c * side : (c + 1) * side].mean() for c in range(9)] for r in range(9)]
    bits = [boxes[r][c + 1] > boxes[r][c] for r in range(8) for c in range(8)]
    bits += [boxes[r + 1][c] > boxes[r][c] for r in range(8) for c in range(8)]
    return f"{int(''.join('01'[int(bit)] for bit in bits), 2):032x}"


@pytest.mark.parametrize("seed", range(5))
def test_the_perceptual_hash_equals_its_definition(seed: int) -> None:
    squares = np.random.default_rng(seed).integers(0, 256, (9, 9), dtype=np.uint8)
    image = Image.fromarray(np.kron(squares, np.ones((8, 8), np.uint8)))  # boxes of one grey: no rounding
    assert perceptual_hash(image) == reference_hash(image)


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_copies_have_near_hashes_and_other_images_do_not() -> None:
    first = perceptual_hash(photograph(0))
    for copy in (photograph(0).resize((150, 150)), Image.open(io.BytesIO(encoded(photograph(0), "JPEG", quality=30)))):
        assert distance(first, perceptual_hash(copy)) <= 12
    assert min(distance(first, perceptual_hash(photograph(seed))) for seed in range(1, 30)) > 20


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_has_a_hash(mode: str) -> None:
    if mode == "I;16":
        grey = np.asarray(photograph().convert("L"), np.uint16) * 256
        image = Image.fromarray(grey)
    else:
        image = photograph().convert(mode)
    assert distance(perceptual_hash(image), perceptual_hash(photograph())) <= (40 if mode == "1" else 12)


def test_a_flat_image_has_no_perceptual_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (32, 32), "white")) == ""


def test_a_bomb_is_not_decoded_and_the_limit_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(inspection, "MOST_PIXELS", 1000)
    result = inspect_bytes(encoded(photograph()))
    assert result.problem == "bomb"
    assert before == Image.MAX_IMAGE_PIXELS


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "pipe.jpg").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("/nowhere/at/all.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    wrong = {}
    for name in ("pipe", "link", "folder", "empty", "none"):
        result = state_of(str(tmp_path / f"{name}.jpg"))
        assert isinstance(result, Inspection)
        wrong[name] = result.problem
    assert wrong == {
        "pipe": "unreadable",
        "link": "missing",
        "folder": "unreadable",
        "empty": "zero_byte",
        "none": "missing",
    }
    assert inspect(Location(str(tmp_path / "none.jpg"))).problem == "missing"


def test_ranges_and_members_are_read_in_place(tmp_path: Path) -> None:
    content = encoded(photograph())
    (tmp_path / "shard").write_bytes(b"before" + content + b"behind")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jpg", content)
    alone = inspect_bytes(content)
    assert inspect(Location(str(tmp_path / "shard"), 6, len(content))) == alone
    assert inspect(Location(str(tmp_path / "a.zip"), 0, len(content), "x.jpg")) == alone


def test_several_processes_give_the_results_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_inspection, "FEW", 4)
    monkeypatch.setattr(batch_inspection, "CHUNK", 3)
    locations = []
    for number in range(10):
        content = encoded(photograph(number))
        (tmp_path / f"{number}.jpg").write_bytes(content if number % 4 else content[:-60])
        locations.append(Location(str(tmp_path / f"{number}.jpg")))
    together = dict(inspect_all(locations, 2))
    assert together == dict(inspect_all(locations, 1))
    assert [number for number in range(10) if together[number].problem] == [0, 4, 8]
