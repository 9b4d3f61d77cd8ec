"""The published sizes of the benchmarks, and their comparison with a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from imbalance_vlm.components.registry import Section
from imbalance_vlm.data.prepare import selecting_settings
from imbalance_vlm.long_tail import GROUPS
from imbalance_vlm.verification.collection import Collection
from imbalance_vlm.verification.findings import Finding


@dataclass(frozen=True)
class Published:
    """What papers report of a benchmark; None where they report nothing.

    Args:
        dataset: its name in the catalogue.
        classes: number of classes.
        images: number of images of each split.
        largest: training images of the largest class.
        smallest: training images of the smallest class.
        groups: number of classes that are many, medium and few, by > 100 and < 20 training images.
        settings: the settings that select this benchmark, for a dataset with several.
        unchecked: facts from memory or a secondary source; a difference from these is not a finding.
    """

    dataset: str
    classes: int
    images: Mapping[str, int] | None = None
    largest: int | None = None
    smallest: int | None = None
    groups: tuple[int, int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """The dataset and the settings that select this benchmark."""
        return _title(self.dataset, self.settings)


def _title(dataset: str, settings: Mapping[str, Any]) -> str:
    return ", ".join([dataset, *(f"{name} {value:g}" for name, value in settings.items())])


def _cifar100(imbalance: int, train: int, smallest: int, groups: tuple[int, int, int]) -> Published:
    images = {"train": train, "test": 10_000}
    return Published("cifar100_lt", 100, images, 500, smallest, groups, {"imbalance": imbalance})


PUBLISHED = (
    Published("imagenet_lt", 1000, {"train": 115_846, "val": 20_000, "test": 50_000}, 1280, 5, (385, 479, 136)),
    Published("places_lt", 365, {"train": 62_500, "val": 7_300, "test": 36_500}, 4980, 5, (131, 163, 71)),
    Published(
        "inat2018",
        8142,
        {"train": 437_513, "test": 24_426},
        1000,
        2,
        (842, 4076, 3224),
        unchecked=frozenset({"groups"}),
    ),
    _cifar100(10, 19_573, 50, (69, 31, 0)),
    _cifar100(50, 12_608, 10, (41, 41, 18)),
    _cifar100(100, 10_847, 5, (35, 35, 30)),
    _cifar100(200, 9_502, 2, (30, 31, 39)),
    Published("cifar10_lt", 10, {"train": 12_406, "test": 10_000}, 5000, 50, (8, 2, 0), {"imbalance": 100}),
    Published("imagenet", 1000),
    Published("caltech101", 100),
    Published("oxford_pets", 37),
    Published("stanford_cars", 196),
    Published("oxford_flowers", 102),
    Published("food101", 101),
    Published("fgvc_aircraft", 100),
    Published("sun397", 397),
    Published("dtd", 47),
    Published("eurosat", 10),
    Published("ucf101", 101),
)


def published_for(section: Section) -> tuple[Published | None, str]:
    """The published facts that a data section should agree with, or None and why they are not compared.

    The reason is "" for a dataset of which nothing is published.
    """
    of_dataset = [facts for facts in PUBLISHED if facts.dataset == section["name"]]
    if not of_dataset:
        return None, ""
    selecting = selecting_settings(section)
    for facts in of_dataset:
        if all(section.get(name) == value for name, value in facts.settings.items()):
            if selecting:
                return None, f"the recipe makes another dataset of {facts.dataset} ({', '.join(selecting)})"
            return facts, ""
    settings = {name: section[name] for name in of_dataset[0].settings if name in section}
    return None, f"no published counts of {_title(section['name'], settings)} are known"


@dataclass(frozen=True)
class Comparison:
    """A dataset compared with its published facts.

    Args:
        table: see `compare`; None where there are none.
        title: the benchmark.
        note: why they are not compared.
    """

    table: pd.DataFrame | None = None
    title: str = ""
    note: str = ""

    @property
    def findings(self) -> list[Finding]:
        """A finding for each checked fact that differs."""
        if self.table is None:
            return []
        return [
            Finding(
                "published",
                path=fact,
                detail=f"published {published:,}, here {'none' if pd.isna(here) else f'{int(here):,}'}",
            )
            for fact, published, here, checked, agrees in self.table.itertuples(index=False)
            if checked and not agrees
        ]


def compare_published(collection: Collection, groups: Mapping[str, int] | None) -> Comparison:
    """The collection of a recipe compared with the published facts of its dataset.

    Args:
        collection: the images.
        groups: number of classes of each group; None where they are not made by the published rule.
    """
    if collection.section is None:
        return Comparison()
    facts, reason = published_for(collection.section)
    if facts is None:
        return Comparison(note=f"not compared with published counts: {reason}" if reason else "")
    images = {split: int(collection.counts(split).sum()) for split in collection.splits}
    table = compare(facts, images, collection.counts(collection.main).tolist(), groups)
    return Comparison(table, facts.title)


def compare(
    facts: Published, images: Mapping[str, int], counts: Sequence[int], groups: Mapping[str, int] | None
) -> pd.DataFrame:
    """One row per published fact: fact, published, here, whether the published figure is checked, and agrees.

    Args:
        facts: the published facts.
        images: number of images of each split.
        counts: (C,) training images of each class.
        groups: number of classes of each group; None where they are not made by the published rule.
    """
    rows: list[tuple[str, int, int | None, bool]] = [("classes", facts.classes, len(counts), True)]
    rows += [(f"{split} images", count, images.get(split), True) for split, count in (facts.images or {}).items()]
    if facts.largest is not None and facts.smallest is not None:
        rows += [("largest class", facts.largest, max(counts), True)]
        rows += [("smallest class", facts.smallest, min(counts), True)]
    if facts.groups is not None and groups is not None:
        checked = "groups" not in facts.unchecked
        rows += [
            (f"{group} classes", count, groups[group], checked)
            for group, count in zip(GROUPS, facts.groups, strict=True)
        ]
    table = pd.DataFrame(rows, columns=["fact", "published", "here", "checked"])
    table["agrees"] = table["published"] == table["here"]
    return table
