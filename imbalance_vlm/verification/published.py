"""The published sizes of the benchmarks, and a dataset beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from imbalance_vlm.long_tail import GROUPS


@dataclass(frozen=True)
class Published:
    """What papers say of a benchmark; None where they say nothing.

    Args:
        classes: how many.
        images: of each split.
        largest: training images of the head class.
        smallest: training images of the last class.
        groups: classes that are many, medium and few.
        unchecked: facts from memory or a secondary source; a difference from these says little.
    """

    classes: int
    images: Mapping[str, int] | None = None
    largest: int | None = None
    smallest: int | None = None
    groups: tuple[int, int, int] | None = None
    unchecked: frozenset[str] = frozenset()


def _cifar100(train: int, smallest: int, groups: tuple[int, int, int]) -> Published:
    return Published(100, {"train": train, "test": 10_000}, 500, smallest, groups)


PUBLISHED: dict[str, Published] = {
    "imagenet_lt": Published(1000, {"train": 115_846, "val": 20_000, "test": 50_000}, 1280, 5, (385, 479, 136)),
    "places_lt": Published(365, {"train": 62_500, "val": 7_300, "test": 36_500}, 4980, 5, (131, 163, 71)),
    "inat2018": Published(8142, {"train": 437_513, "test": 24_426}, 1000, 2, (842, 4076, 3224), frozenset({"groups"})),
    "cifar100_lt, imbalance 10": _cifar100(19_573, 50, (69, 31, 0)),
    "cifar100_lt, imbalance 50": _cifar100(12_608, 10, (41, 41, 18)),
    "cifar100_lt, imbalance 100": _cifar100(10_847, 5, (35, 35, 30)),
    "cifar100_lt, imbalance 200": _cifar100(9_502, 2, (30, 31, 39)),
    "cifar10_lt, imbalance 100": Published(10, {"train": 12_406, "test": 10_000}, 5000, 50, (8, 2, 0)),
    **{
        name: Published(classes)
        for name, classes in {
            "imagenet": 1000,
            "caltech101": 100,
            "oxford_pets": 37,
            "stanford_cars": 196,
            "oxford_flowers": 102,
            "food101": 101,
            "fgvc_aircraft": 100,
            "sun397": 397,
            "dtd": 47,
            "eurosat": 10,
            "ucf101": 101,
        }.items()
    },
}
"""By dataset, the synthetic ones with their imbalance. The groups are those of > 100 and < 20 training images."""

CHANGES = {"tail": None, "shots": None, "classes": "all", "tau": 1.0, "test_shift": None}
"""Settings that make another dataset of a benchmark, with the values that leave it alone."""


def benchmark_of(section: Mapping[str, Any]) -> tuple[str, str]:
    """The entry of `PUBLISHED` that a data section should agree with, or "", and why there is none."""
    name = str(section["name"])
    key = f"{name}, imbalance {section['imbalance']:g}" if "imbalance" in section else name
    if key not in PUBLISHED:
        return "", f"no published counts of {key} are known here"
    changed = [setting for setting, usual in CHANGES.items() if section.get(setting, usual) != usual]
    if changed:
        return "", f"the recipe makes another set of {name} ({', '.join(changed)})"
    return key, ""


def compare(key: str, images: Mapping[str, int], counts: list[int], groups: Mapping[str, int] | None) -> pd.DataFrame:
    """A row for each published fact: fact, published, here, agrees, and whether the published figure is checked.

    Args:
        key: of `PUBLISHED`.
        images: of each split, here.
        counts: training images of each class, here.
        groups: classes of each group, here; None where they are made by other thresholds.
    """
    facts = PUBLISHED[key]
    rows: list[tuple[str, int, int | None, bool]] = [("classes", facts.classes, len(counts), True)]
    rows += [(f"{split} images", said, images.get(split), True) for split, said in (facts.images or {}).items()]
    if facts.largest is not None and facts.smallest is not None:
        rows += [("largest class", facts.largest, max(counts), True)]
        rows += [("smallest class", facts.smallest, min(counts), True)]
    if facts.groups is not None and groups is not None:
        checked = "groups" not in facts.unchecked
        rows += [
            (f"{group} classes", said, groups[group], checked) for group, said in zip(GROUPS, facts.groups, strict=True)
        ]
    table = pd.DataFrame(rows, columns=["fact", "published", "here", "checked"])
    table["agrees"] = table["published"] == table["here"]
    return table
