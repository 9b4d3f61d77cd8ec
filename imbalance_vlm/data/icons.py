"""The embedded topical sets: what the eleven few-shot datasets are to CLIP, drawn as icons.

Each set has classes of one topic, a sentence of its own, and a natural tail. By the measure of
`imbalance-vlm data verify`, no test or validation image has a near-duplicate in another split of its set or among the
drawings that mini-clip was pre-trained on. `tools/build_icons.py` builds them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.reader import Listing

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SIZE = 32


@dataclass(frozen=True)
class IconsReader:
    """An embedded set of icons of 32 x 32 pixels; classes are in alphabetical order.

    Args:
        name: a folder of the package's assets, such as icons_food.
    """

    name: str

    def list(self) -> Listing:
        return listing(self.name)

    def read(self) -> Dataset:
        """The dataset."""
        return self.list().dataset()

    def identity(self) -> str:
        """Checksums of the shipped files, which are not unpacked."""
        return checksums(self.name)


def listing(name: str, **described: Any) -> Listing:
    """The set in one folder of the assets.

    Args:
        name: of the folder.
        **described: fields of the listing that the folder's index does not name.
    """
    folder = ASSETS / name
    index = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    pixels = _drawings(folder, index["grey"], index["colour"])
    splits = {
        split: Split(
            ArrayImages(pixels[np.array(places)], prefix=f"{name}/{split}/"),
            np.repeat(np.arange(len(index["names"])), index["counts"][split]),
        )
        for split, places in index["places"].items()
    }
    described |= {key: index[key] for key in ("templates", "flips", "test_only") if key in index}
    described["templates"] = tuple(described["templates"])
    return Listing(name=name, class_names=tuple(index["names"]), splits=splits, **described)


def checksums(name: str) -> str:
    """The checksums of a folder of the assets; its files are not unpacked."""
    return "".join(f"{path.name} {zlib.crc32(path.read_bytes())};" for path in sorted((ASSETS / name).glob("*.*")))


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
