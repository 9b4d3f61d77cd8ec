"""Icons-LT, the embedded long-tailed dataset: drawings of everyday concepts by many designers.

A concept is a class; some concepts are drawn by nearly every designer and others by a few, so the tail is natural.
Images are 32 x 32 RGB on white with 16 levels per channel; 10 images per class are for testing, 3 for validation and
the rest for training. By the perceptual hash of `tools/build_icons.py`, which builds the dataset, no test image has a
near-duplicate in another split or in the corpus that mini-clip was pre-trained on. By the wider measure of
`imbalance-vlm data verify`, 514 test drawings (7 %) have one, mostly filled or two-tone variants of a design; and 27
validation drawings, but no test drawings, are equal to training drawings of a synonymous class (plane, airplane).
"""

from __future__ import annotations

from dataclasses import dataclass

from imbalance_vlm.data import icons
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.reader import Listing

ASSETS = icons.ASSETS / "icons_lt"
TEMPLATES = ("{}", "an icon of {}", "a {} icon", "a {} symbol", "a drawing of {}")


@dataclass(frozen=True, kw_only=True)
class IconsLTReader:
    """Icons-LT with its splits "train", "val" and "test"; classes are in alphabetical order."""

    def list(self) -> Listing:
        return icons.listing("icons_lt", templates=TEMPLATES, flips=False)

    def read(self) -> Dataset:
        """The dataset."""
        return self.list().dataset()

    def identity(self) -> str:
        """Checksums of the shipped files, which are not unpacked."""
        return icons.checksums("icons_lt")
