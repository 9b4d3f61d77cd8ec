"""Long tails made from balanced datasets, and test sets with shifted class distributions.

[0] Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019 (exponential)
[1] Buda et al., A systematic study of the class imbalance problem in convolutional neural networks, 2018 (step)
[2] Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, CVPR 2021 (shifted tests)

Number of images of the class at rank r of C, from head to tail, with factor F = n_max / n_min:

    exponential   n_r = int(n_max F^(-r / (C - 1)))
    pareto        n_r = int(n_max (r + 1)^(-ln F / ln C)), the rank-size rule of a Pareto distribution
    step          n_r = n_max in the first half of the classes (C // 2 of them), int(n_max / F) in the second

Differs from them in: a class keeps one image where the formula gives none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.errors import InputError
from imbalance_vlm.values import Range

Factor = Annotated[float, Range(at_least=1)]  # largest class over smallest
Tail = Literal["exponential", "pareto", "step"]
Order = Literal["label", "size", "random"]
Shift = Literal["uniform", "forward", "backward"]


def tail_counts(kind: Tail, num_classes: int, largest: int, factor: float) -> NDArray[np.int64]:
    """(C,) number of images of each class, from head to tail.

    Args:
        kind: the shape of the tail.
        num_classes: C.
        largest: number of images of the first class.
        factor: largest class over smallest, at least 1.

    >>> tail_counts("exponential", 5, 16, 1 / 0.06).tolist(), tail_counts("step", 4, 100, 10).tolist()
    ([16, 7, 3, 1, 1], [100, 100, 10, 10])
    """
    if largest < 1 or num_classes < 1:
        raise InputError(f"a tail needs classes and a largest class of at least 1 image, got {num_classes}, {largest}")
    if factor < 1:
        raise InputError(f"the factor of a tail (largest class over smallest) must be at least 1, got {factor:g}")
    last = max(num_classes - 1, 1)
    share = 1 / factor
    if kind == "exponential":
        parts = [share ** (rank / last) for rank in range(num_classes)]
    elif kind == "pareto":
        power = math.log(factor) / math.log(max(num_classes, 2))
        parts = [(rank + 1) ** -power for rank in range(num_classes)]
    else:
        parts = [1.0 if rank < max(num_classes // 2, 1) else share for rank in range(num_classes)]
    # A rounding error must not cost an image: 100 * 4 ** -(ln 10 / ln 4) is 9.999999999999998.
    slack = 1e-9 if kind == "pareto" else 0.0
    return np.array([max(int(largest * part + slack), 1) for part in parts], np.int64)


def subsample_by_counts(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The rows that are kept when class c has at most `counts[c]` images, class by class.

    Each class in turn is shuffled and its first images are kept. The generator is NumPy's legacy one, because the
    long-tailed CIFAR sets of all papers are its draws with seed 0.

    Args:
        labels: (N,) int64.
        counts: (C,) number of images to keep.
        seed: of the generator.
    """
    shuffle = np.random.RandomState(seed).shuffle
    chunks = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffle(rows)
        chunks.append(rows[: counts[label]])
    return np.concatenate(chunks)


def head_order(counts: NDArray[np.int64], order: Order, seed: int) -> NDArray[np.int64]:
    """(C,) classes from head to tail: in label order, by size, or drawn at random."""
    if order == "size":
        return np.argsort(-counts, kind="stable")
    if order == "random":
        return np.random.default_rng(seed).permutation(len(counts))
    return np.arange(len(counts))


def with_tail(
    dataset: Dataset, kind: Tail, factor: float, largest: int | None = None, order: Order = "label", seed: int = 0
) -> Dataset:
    """The dataset with its training images thinned to a long tail; no class gets more images than it has.

    Args:
        dataset: preferably balanced.
        kind: the shape of the tail.
        factor: largest class over smallest.
        largest: number of images of the head class; None for those of the largest class.
        order: which classes are the head: the first labels, the largest ones, or a random order drawn by `seed`.
        seed: of the draw of the images, and of the random order.

    Raises:
        InputError: the dataset is for testing only.
    """
    dataset.require_training("a tail")
    targets = np.empty(dataset.num_classes, np.int64)
    counts = tail_counts(kind, dataset.num_classes, largest or int(dataset.counts.max()), factor)
    targets[head_order(dataset.counts, order, seed)] = counts
    rows = subsample_by_counts(dataset.splits["train"].labels, targets, seed)
    return replace(dataset, splits={**dataset.splits, "train": dataset.splits["train"].take(rows)})


def with_shifted_test(dataset: Dataset, shift: Shift, factor: float, seed: int = 0) -> Dataset:
    """The dataset with its test images thinned to another class distribution [2].

    "forward" has its head where training has it, "backward" where training has its tail, and "uniform" has equally many
    images of each class. Classes are ranked by training images (ties by label), and the head gets as many images as the
    smallest test class has, so that the distribution is exact.
    """
    test = dataset.splits["test"]
    available = test.counts(dataset.num_classes)
    present = np.flatnonzero(available)
    ranked = present[np.argsort(-dataset.counts[present], kind="stable")]
    targets = np.zeros(dataset.num_classes, np.int64)
    largest = int(available[present].min())
    counts = tail_counts("exponential", len(ranked), largest, factor if shift != "uniform" else 1.0)
    targets[ranked] = counts if shift != "backward" else counts[::-1]
    rows = np.sort(subsample_by_counts(test.labels, targets, seed))
    return replace(dataset, splits={**dataset.splits, "test": test.take(rows)})
