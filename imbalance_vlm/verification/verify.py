"""Checks a dataset before training. Nothing is written into the folders of the data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.verification.batch_inspection import inspect_images
from imbalance_vlm.verification.collection import Collection, collect
from imbalance_vlm.verification.duplicates import NEAR, find_copies
from imbalance_vlm.verification.findings import KINDS, Finding, Verification, findings_table
from imbalance_vlm.verification.inspection import Inspection
from imbalance_vlm.verification.published import compare_published

MANY_FEW = (100, 20)
"""The thresholds of the published groups: many classes have more training images, few classes fewer."""


def verify(
    source: str | Path | Mapping[str, Any] | Collection,
    overrides: Sequence[str] = (),
    *,
    embeddings: bool = False,
    neighbours: int = 10,
    near: int = NEAR,
    ignore: Iterable[str] = (),
    workers: int | None = None,
    device: str = "auto",
) -> Verification:
    """Inspect every image of a dataset, and the dataset as a whole.

    Inspections are kept in the cache folder: a second call, or one after a kill, only reads what has changed since.

    Args:
        source: a recipe, a folder of images, a table or an archive, see `collect`; or the collection itself.
        overrides: `key.path=value` strings.
        embeddings: also search for wrong labels, by nearest neighbours in the space of the recipe's encoder.
        neighbours: number of nearest neighbours that must agree on another class.
        near: bits in which the perceptual hashes (128 bits) of nearly equal images may differ, at most 32; -1 leaves
            such pairs out.
        ignore: kinds of findings to leave out (the keys of `KINDS`).
        workers: processes that read images; None for one per core.
        device: where the encoder runs.

    Raises:
        InputError: no such recipe, folder, table or archive; lists or tables that cannot be read; `embeddings` without
            an encoder.
    """
    ignore = tuple(ignore)
    _check_arguments(ignore, near, neighbours)
    collection = source if isinstance(source, Collection) else collect(source, overrides)
    if embeddings and collection.recipe is None:
        raise InputError(
            f"`embeddings` needs an encoder, and {collection.source} names none; verify a recipe, or add "
            "encoder.name=NAME"
        )
    inspections = inspect_images(collection, (os.cpu_count() or 1) if workers is None else workers)
    thresholds = group_thresholds(collection)
    groups = size_groups(collection, thresholds)
    comparable = thresholds == MANY_FEW and collection.group_counts is None and groups
    sizes = {group: len(labels) for group, labels in groups.items()} if comparable else None
    published = compare_published(collection, sizes)
    copies, notes = find_copies(collection, inspections, near)
    findings = [
        *collection.findings,
        *damaged_images(collection, inspections),
        *empty_classes(collection),
        *copies,
        *published.findings,
    ]
    if embeddings:
        from imbalance_vlm.verification.label_errors import label_errors  # imports torch

        findings += label_errors(collection, inspections, neighbours, device)
    notes += [published.note] if published.note else []
    notes += [f"left out on request: {', '.join(ignore)}"] if ignore else []
    return Verification(
        collection.name,
        collection.source,
        collection.class_names,
        {split: collection.counts(split) for split in collection.splits},
        findings_table(findings, ignore),
        groups,
        thresholds,
        published.table,
        published.title,
        (*collection.notes, *notes),
    )


def _check_arguments(ignore: Sequence[str], near: int, neighbours: int) -> None:
    for kind in ignore:
        if kind not in KINDS:
            raise InputError(
                f"`ignore` must name kinds of findings, got {kind!r}.{did_you_mean(kind, KINDS)} "
                f"Available: {', '.join(KINDS)}"
            )
    if near > 32 or neighbours < 1:
        raise InputError(f"`near` must be at most 32 and `neighbours` at least 1, got {near} and {neighbours}")


def damaged_images(collection: Collection, inspections: Sequence[Inspection]) -> list[Finding]:
    """A finding for each image that is missing or cannot be read."""
    return [
        collection.finding(image, inspection.problem, detail=inspection.detail)
        for image, inspection in zip(collection.images, inspections, strict=True)
        if inspection.problem
    ]


def empty_classes(collection: Collection) -> list[Finding]:
    """A finding for each class without a training image."""
    split = collection.main
    return [
        Finding("empty_class", split, collection.class_names[label], detail=f"no image in '{split}'")
        for label in np.flatnonzero(collection.counts(split) == 0)
    ]


def group_thresholds(collection: Collection) -> tuple[int, int]:
    """The thresholds of many and few, as the recipe has them."""
    groups = (collection.recipe or {}).get("evaluation", {}).get("groups", {})
    return int(groups.get("many", MANY_FEW[0])), int(groups.get("few", MANY_FEW[1]))


def size_groups(collection: Collection, thresholds: tuple[int, int]) -> Mapping[str, NDArray[np.int64]]:
    """The class labels of many, medium and few; empty for a collection without labelled images."""
    counts = collection.counts(collection.main)
    if not counts.sum():
        return {}
    many, few = thresholds
    tail = LongTail(counts, collection.class_names, many, few, allow_empty=True, group_counts=collection.group_counts)
    return tail.groups
