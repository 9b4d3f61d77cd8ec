"""Parts of a dataset: a number of images per class (shots), and the base and novel halves of its classes.

[0] Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022 (few-shot)
[1] Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022 (base to novel)
[2] Dassl.pytorch, https://github.com/KaiyangZhou/Dassl.pytorch, whose draw the papers share

Differs from [2] in: the draw has its own generator, seeded as theirs is, instead of the global one.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.dataset import Dataset, Split
from imbalance_vlm.errors import InputError

VAL_SHOTS = 4
"""The most validation images per class of a few-shot dataset."""


def few_shot(dataset: Dataset, shots: int, seed: int = 0) -> Dataset:
    """The dataset with `shots` training images of each class, and min(shots, 4) to validate on where it has "val".

    Classes are drawn from in the order in which they first occur; a class with fewer images gives all. Select classes
    afterwards, not before: the draw runs over all of them.
    """
    dataset.require_training("few-shot training")
    # Not for cryptography: the papers' draws are those of this generator.
    generator = random.Random(seed)  # noqa: S311
    splits = dict(dataset.splits)
    for name, count in (("train", shots), ("val", min(shots, VAL_SHOTS))):  # one generator for both, in this order
        if name in splits:
            splits[name] = _drawn(splits[name], count, generator)
    return replace(dataset, splits=splits)


def _drawn(split: Split, count: int, generator: random.Random) -> Split:
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels.tolist()):
        rows_of.setdefault(label, []).append(row)
    rows_drawn: list[int] = []
    for rows in rows_of.values():
        rows_drawn += generator.sample(rows, count) if len(rows) >= count else rows
    return split.take(np.array(rows_drawn, np.int64))


def base_novel(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The first ceil(C / 2) classes and the remaining classes, each half with labels from 0.

    Raises:
        InputError: a half of fewer than two classes, or without images to train or to test on.
    """
    if dataset.num_classes < 4:
        raise InputError(
            f"base and novel halves need at least 2 classes each, but dataset '{dataset.name}' has "
            f"{dataset.num_classes} in all; set data.classes to all"
        )
    half = math.ceil(dataset.num_classes / 2)
    return (
        with_classes(dataset, np.arange(half), "base"),
        with_classes(dataset, np.arange(half, dataset.num_classes), "novel"),
    )


def with_classes(dataset: Dataset, classes: NDArray[np.int64], what: str = "chosen") -> Dataset:
    """The dataset with only these classes, relabelled from 0 in this order.

    Args:
        dataset: the dataset.
        classes: (K,) labels to keep.
        what: what the classes are called in the message.

    Raises:
        InputError: a split that a dataset must have holds none of their images.
    """
    new_label = np.full(dataset.num_classes, -1)
    new_label[classes] = np.arange(len(classes))
    splits = {}
    for name, split in dataset.splits.items():
        rows = np.flatnonzero(new_label[split.labels] >= 0)
        if len(rows):
            part = split.take(rows)
            splits[name] = Split(part.images, new_label[part.labels])
        elif name != "val":
            raise InputError(f"dataset '{dataset.name}' has no image of the {what} classes in '{name}'")
    return replace(
        dataset,
        class_names=tuple(dataset.class_names[label] for label in classes),
        splits=splits,
        group_counts=None if dataset.group_counts is None else dataset.group_counts[classes],
    )


def decay_counts(num_classes: int, largest: int, tau: float) -> NDArray[np.int64]:
    """(C,) number of images of class j, from head to tail: int(max(n_max tau^(j / (C - 1)), 1)).

    `tau` is smallest class over largest.

    >>> decay_counts(5, 16, 0.06).tolist()
    [16, 7, 3, 1, 1]
    """
    last = max(num_classes - 1, 1)
    return np.array([int(max(largest * tau ** (rank / last), 1)) for rank in range(num_classes)], np.int64)


def with_decay(dataset: Dataset, largest: int, tau: float, seed: int = 0) -> Dataset:
    """The dataset with its training classes decaying from `largest` images to `tau` times as many.

    Labels are mostly alphabetical, so the order from head to tail is a permutation drawn by `seed`. The first images of
    each class are kept, which after `few_shot` are a random draw.
    """
    dataset.require_training("a decay of the classes")
    train = dataset.splits["train"]
    targets = np.empty(dataset.num_classes, np.int64)
    targets[np.random.default_rng(seed).permutation(dataset.num_classes)] = decay_counts(
        dataset.num_classes, largest, tau
    )
    rows = [np.flatnonzero(train.labels == label)[: targets[label]] for label in range(dataset.num_classes)]
    return replace(dataset, splits={**dataset.splits, "train": train.take(np.concatenate(rows))})
