"""The interface of a dataset reader, the listing it gives, and the split that is drawn where a source has none.

A reader is a frozen dataclass: its keyword-only fields are the settings of a recipe's `data` section, and a positional
field `name` receives the name by which the recipe calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.components.ranges import Seed, Share
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.data.dataset import SPLITS, Dataset, Split
from imbalance_vlm.errors import InputError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in files and folders, and the split each one means."""


OnError = Literal["raise", "skip"]
"""What missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and the result
counts them."""


class Reader(Protocol):
    """A source of images with its settings.

    A reader of users' own files may also have a class method `settings_for(path)`: the settings that read this file or
    folder, or None where it is of another form. `imbalance-vlm data verify PATH` chooses the reader by it.
    """

    def list(self) -> Listing:
        """The class names, images and labels that the source lists; no image is opened or checked for existence."""
        ...

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: the source is missing, damaged or incomplete.
        """
        ...

    def identity(self) -> str:
        """A string that changes whenever `read` would give another dataset.

        Files are read once for it, at most; see `imbalance_vlm.data.contents`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DrawnSplit(SettingGroup):
    """How test and validation images are drawn where the source does not name them.

    Args:
        test_fraction: share of each class set aside for testing where there is no test split; a class keeps at least
            one training image.
        val_fraction: share of each class set aside for validation, under the same conditions.
        split_seed: seed of this draw. It does not depend on the run's seed, so all seeds share one test set.
    """

    test_fraction: Share = 0.2
    val_fraction: Share = 0.0
    split_seed: Seed = 0

    def needed(self, splits: Mapping[str, Split]) -> DrawnSplit | None:
        """The split to draw from `splits`: itself where they are training images only, else None."""
        return self if set(splits) == {"train"} else None

    def draw(self, images: Split) -> dict[str, Split]:
        """A seeded split, drawn class by class; every class keeps at least one training image.

        A class's share is rounded to the nearest whole image; a class of one image is for training only.
        """
        rng = np.random.default_rng(self.split_seed)
        parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
        for label in np.unique(images.labels):
            rows = rng.permutation(np.flatnonzero(images.labels == label))
            test = min(round(len(rows) * self.test_fraction), len(rows) - 1)
            val = min(round(len(rows) * self.val_fraction), len(rows) - 1 - test)
            parts["test"].append(rows[:test])
            parts["val"].append(rows[test : test + val])
            parts["train"].append(rows[test + val :])
        rows_of = {split: np.sort(np.concatenate(chunks)) for split, chunks in parts.items()}
        return {split: images.take(rows) for split, rows in rows_of.items() if len(rows)}


DEFAULT_SPLIT = DrawnSplit()


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """A dataset as its source lists it, with images that may be missing or damaged.

    Args:
        name, class_names, splits, templates, flips, group_counts, test_only: as in `Dataset`.
        undivided: the split to draw, where the source does not say which images are for testing: all of them are in
            "train" then. None where the source has splits.
        empty_folders: class folders without an image, relative to the root.
        passed_over, notes: as in `Dataset`.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    flips: bool = True
    group_counts: NDArray[np.int64] | None = None
    test_only: bool = False
    undivided: DrawnSplit | None = None
    empty_folders: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def divided(self) -> Listing:
        """The listing with its test and validation images drawn, where the source does not name them.

        Raises:
            InputError: there are no training or no test images.
        """
        splits = self.undivided.draw(self.splits["train"]) if self.undivided else self.splits
        if self.undivided and "test" not in splits:
            largest = int(self.splits["train"].counts(len(self.class_names)).max())
            remedy = "set data.test_fraction=0.5" if largest > 1 else "add images: a class needs two of them"
            raise InputError(
                f"dataset '{self.name}' must have images for 'test', but a test_fraction of "
                f"{self.undivided.test_fraction:g} of a class sets none aside (the largest has {largest}); {remedy}"
            )
        for required in ("test",) if self.test_only else ("train", "test"):
            if required not in splits:
                raise InputError(
                    f"dataset '{self.name}' must have images for '{required}', got images for "
                    f"{', '.join(splits) or 'no split'}; name the splits train, val and test, or give training images "
                    "alone and a test_fraction that leaves some of each class"
                )
        return replace(self, splits=splits, undivided=None)

    def dataset(self, skipped: Sequence[str] = ()) -> Dataset:
        """The listed images as a dataset, its test images drawn where the source does not name them.

        Args:
            skipped: names of images that were left out of the listing.

        Raises:
            InputError: there are no training or no test images; and what `Dataset` refuses.
        """
        return Dataset(
            name=self.name,
            class_names=self.class_names,
            splits=self.divided().splits,
            templates=self.templates,
            flips=self.flips,
            skipped=skipped,
            passed_over=self.passed_over,
            notes=self.notes,
            group_counts=self.group_counts,
            test_only=self.test_only,
        )
