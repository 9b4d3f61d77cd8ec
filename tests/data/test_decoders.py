"""Two decoders that agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_vlm.data.dataset import FileImages
from imbalance_vlm.data.decoders import decode, decode_on, encoded
from tests.data.images import smooth

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_png_files_decode_to_equal_pixels(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    smooth(0, 30, 20).convert(mode).save(path)
    by_pil = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(decode(path).permute(1, 2, 0).numpy(), by_pil)


@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"progressive": True}])
def test_jpeg_files_decode_to_nearly_equal_pixels(settings: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth(0, 61, 47).save(path, quality=90, **settings)
    by_pil = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(decode(path).permute(1, 2, 0).numpy() - by_pil).max() <= 2


@pytest.mark.parametrize(("suffix", "mode"), [("jpg", "CMYK"), ("bmp", "RGB"), ("gif", "P"), ("png", "I;16")])
def test_pil_decodes_what_torchvision_does_not(suffix: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(path)
    else:
        smooth(0, 30, 20).convert(mode).save(path)
    by_pil = np.asarray(FileImages(tmp_path, (path.name,))[0]).astype(int)
    assert np.abs(decode(path).permute(1, 2, 0).numpy() - by_pil).max() <= 2


def test_only_jpeg_files_are_left_encoded_for_the_device(tmp_path: Path) -> None:
    image = smooth(0, 30, 20)
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "b.png")
    image.save(tmp_path / "c.png")
    (tmp_path / "c.png").rename(tmp_path / "c.jpg")
    files = [encoded(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg")]
    assert [file.ndim for file in files] == [1, 3, 3]
    for decoded, name in zip(decode_on(CPU, files), ("a.jpg", "b.png", "c.jpg"), strict=True):
        assert torch.equal(decoded, decode(tmp_path / name)), name
