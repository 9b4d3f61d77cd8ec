"""The embedded sets of icons.

Icons-LT is a long-tailed dataset: drawings of everyday concepts by many designers. A concept is a class; some are drawn
by nearly every designer and others by a few, so the tail is natural. 10 images per class are for testing, 3 for
validation and the rest for training. By the perceptual hash of `tools/build_icons.py`, which builds all sets, no test
image has a near-duplicate in another split or in the corpus that mini-clip was pre-trained on. By the wider measure of
`imbalance-vlm data verify`, 514 test drawings (7 %) have one, mostly filled or two-tone variants of a design; and 27
validation drawings, but no test drawings, are equal to training drawings of a synonymous class (plane, airplane).

The topical sets are what the eleven few-shot datasets are to CLIP: classes of one topic, a sentence of their own and a
natural tail. The style shifts are what ImageNet-Sketch and others are to ImageNet: the classes of Icons-LT in one
style, for testing only. By the measure of `imbalance-vlm data verify`, no test or validation image of these has a
near-duplicate in another split of its set or among the drawings of pre-training.

Images are 32 x 32 RGB on white, with 16 levels per channel.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.dataset import SPLITS, ArrayImages, Dataset, Split
from imbalance_vlm.data.reader import Listing

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TEMPLATES = ("{}", "an icon of {}", "a {} icon", "a {} symbol", "a drawing of {}")
"""The sentences of Icons-LT and its styles."""
SIZE = 32


@dataclass(frozen=True)
class IconsReader:
    """An embedded set of icons of 32 x 32 pixels; classes are in alphabetical order.

    Args:
        name: a folder of the package's assets, such as icons_lt or icons_food.
    """

    name: str

    def list(self) -> Listing:
        folder = ASSETS / self.name
        index = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        pixels = _drawings(folder, index["grey"], index["colour"])
        splits = {
            split: Split(
                ArrayImages(pixels[np.array(places)], prefix=f"{self.name}/{split}/"),
                np.repeat(np.arange(len(index["names"])), index["counts"][split]),
            )
            for split, places in index["places"].items()
        }
        return Listing(
            name=self.name,
            class_names=tuple(index["names"]),
            splits={split: splits[split] for split in SPLITS if split in splits},
            templates=tuple(index.get("templates", TEMPLATES)),
            flips=index.get("flips", False),
            test_only=index.get("test_only", False),
            group_counts=np.array(index["group_counts"], np.int64) if "group_counts" in index else None,
        )

    def read(self) -> Dataset:
        """The dataset."""
        return self.list().dataset()

    def identity(self) -> str:
        """Checksums of the shipped files, which are not unpacked."""
        files = sorted((ASSETS / self.name).glob("*.*"))
        return "".join(f"{path.name} {zlib.crc32(path.read_bytes())};" for path in files)


def _drawings(folder: Path, grey: int, colour: int) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) pixels of the grey drawings, then of the coloured ones."""
    pixels = np.empty((grey + colour, SIZE, SIZE, 3), np.uint8)
    pixels[:grey] = _levels(folder / "grey.bin").reshape(grey, SIZE, SIZE, 1)
    pixels[grey:] = _levels(folder / "colour.bin").reshape(colour, SIZE, SIZE, 3)
    return pixels


def _levels(file: Path) -> NDArray[np.uint8]:
    packed = np.frombuffer(zlib.decompress(file.read_bytes()), np.uint8)
    levels = np.empty((len(packed), 2), np.uint8)
    levels[:, 0] = (packed >> 4) * np.uint8(17)
    levels[:, 1] = (packed & 15) * np.uint8(17)
    return levels.ravel()
