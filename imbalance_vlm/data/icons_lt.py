"""Icons-LT, the embedded long-tailed dataset: drawings of everyday concepts by many designers.

A concept is a class; some concepts are drawn by nearly every designer and others by a few, so the tail is natural.
Images are 32 x 32 RGB on white with 16 levels per channel; 10 images per class are for testing, 3 for validation and
the rest for training. By the perceptual hash of `tools/build_icons.py`, which builds the dataset, no test image has a
near-duplicate in another split or in the corpus that mini-clip was pre-trained on. By the wider measure of
`imbalance-vlm data verify`, 514 test drawings (7 %) have one, mostly filled or two-tone variants of a design; and 27
validation drawings, but no test drawings, are equal to training drawings of a synonymous class (plane, airplane).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.reader import Listing

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "icons_lt"
TEMPLATES = ("{}", "an icon of {}", "a {} icon", "a {} symbol", "a drawing of {}")
SIZE = 32


@dataclass(frozen=True, kw_only=True)
class IconsLTReader:
    """Icons-LT with its splits "train", "val" and "test"; classes are in alphabetical order."""

    def list(self) -> Listing:
        index = json.loads((ASSETS / "classes.json").read_text(encoding="utf-8"))
        pixels = _drawings(index["grey"], index["colour"])
        splits = {
            split: Split(
                ArrayImages(pixels[np.array(index["places"][split])], prefix=f"icons_lt/{split}/"),
                np.repeat(np.arange(len(index["names"])), index["counts"][split]),
            )
            for split in ("train", "val", "test")
        }
        return Listing(
            name="icons_lt", class_names=tuple(index["names"]), splits=splits, templates=TEMPLATES, flips=False
        )

    def read(self) -> Dataset:
        """The dataset."""
        return self.list().dataset()

    def identity(self) -> str:
        """Checksums of the shipped files, which are not unpacked."""
        return "".join(f"{path.name} {zlib.crc32(path.read_bytes())};" for path in sorted(ASSETS.glob("*.*")))


def _drawings(grey: int, colour: int) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) pixels of the grey drawings, then of the coloured ones."""
    pixels = np.empty((grey + colour, SIZE, SIZE, 3), np.uint8)
    pixels[:grey] = _levels("grey.bin").reshape(grey, SIZE, SIZE, 1)
    pixels[grey:] = _levels("colour.bin").reshape(colour, SIZE, SIZE, 3)
    return pixels


def _levels(name: str) -> NDArray[np.uint8]:
    packed = np.frombuffer(zlib.decompress((ASSETS / name).read_bytes()), np.uint8)
    levels = np.empty((len(packed), 2), np.uint8)
    levels[:, 0] = (packed >> 4) * np.uint8(17)
    levels[:, 1] = (packed & 15) * np.uint8(17)
    return levels.ravel()
