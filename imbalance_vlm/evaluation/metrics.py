"""Metrics of predictions. Accuracies, F1 and calibration errors are in percent, NLL in nats.

An empty group, or a class without test images, is NaN and not 0, which would look like a measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per test image: true and predicted class, probability of the predicted one, -log p of the true one."""

    labels: Ints
    predicted: Ints
    confidence: Floats
    nll: Floats

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the image was recognised."""
        return self.labels == self.predicted

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> Predictions:
        return Predictions(self.labels[rows], self.predicted[rows], self.confidence[rows], self.nll[rows])


def accuracy(correct: NDArray[np.bool_]) -> float:
    """Share of the images that were recognised, in percent; NaN without images."""
    return float(100.0 * correct.mean()) if len(correct) else math.nan


def per_class_accuracy(labels: Ints, predicted: Ints, num_classes: int) -> Floats:
    """(C,) share of each class's test images that were recognised, in percent; NaN for a class without any."""
    total = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[labels == predicted], minlength=num_classes)
    return np.divide(100.0 * correct, total, out=np.full(num_classes, np.nan), where=total > 0)


def macro_f1(labels: Ints, predicted: Ints) -> float:
    """Mean F1 over the classes that have test images, in percent (scikit-learn's); NaN without images."""
    from sklearn.metrics import f1_score

    if not len(labels):
        return math.nan
    return float(100.0 * f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0))


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> float:
    """ECE in percent over equal-width bins (b/B, (b+1)/B]; NaN without images.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    if len(confidence) == 0:
        return math.nan
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(100.0 * np.abs(gap).sum() / len(confidence))


def mean(values: Floats) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def harmonic_mean(values: Floats) -> float:
    """Harmonic mean of the values that are not NaN; 0 as soon as one value is 0."""
    present = values[~np.isnan(values)]
    if not present.size:
        return math.nan
    return 0.0 if np.any(present == 0) else float(present.size / np.sum(1.0 / present))


def geometric_mean(values: Floats) -> float:
    """Geometric mean of the values that are not NaN; 0 as soon as one value is 0."""
    present = values[~np.isnan(values)]
    if not present.size:
        return math.nan
    return 0.0 if np.any(present == 0) else float(np.exp(np.log(present).mean()))


def base_novel_h(base: float, novel: float) -> float:
    """H = 2 B N / (B + N); 0 where both are 0.

    Unlike `harmonic_mean` it is NaN as soon as one of the two is undefined.

    >>> round(base_novel_h(82.69, 63.22), 2)
    71.66
    """
    if math.isnan(base) or math.isnan(novel):
        return math.nan
    return 2.0 * base * novel / (base + novel) if base + novel else 0.0
