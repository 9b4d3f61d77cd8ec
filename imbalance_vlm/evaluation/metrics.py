"""What is said about predictions. Accuracies, F1 and calibration errors are in percent; NLL is in nats.

An empty group, or a class without test images, is NaN: a zero would be a claim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.long_tail import GROUPS, LongTail

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row for each test image: true and predicted class, the probability of the predicted, -log p of the true."""

    labels: Ints
    predicted: Ints
    confidence: Floats
    nll: Floats


def per_class_accuracy(labels: Ints, predicted: Ints, num_classes: int) -> Floats:
    """(C,) share of each class's test images that were recognised, in percent; NaN for a class without any."""
    total = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[labels == predicted], minlength=num_classes)
    return np.divide(100.0 * right, total, out=np.full(num_classes, np.nan), where=total > 0)


def macro_f1(labels: Ints, predicted: Ints) -> float:
    """Mean F1 over the classes that have test images, in percent (scikit-learn's)."""
    from sklearn.metrics import f1_score

    return float(100.0 * f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0))


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> float:
    """ECE in percent over equal-width bins (b/B, (b+1)/B]; NaN without samples.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    if len(confidence) == 0:
        return float("nan")
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(which, weights=right - confidence, minlength=bins)
    return float(100.0 * np.abs(gap).sum() / len(confidence))


def mean(values: Floats) -> float:
    """Mean of what is not NaN; NaN when nothing is left."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def harmonic_mean(values: Floats) -> float:
    """Harmonic mean of what is not NaN; 0 as soon as one value is 0."""
    present = values[~np.isnan(values)]
    if not present.size:
        return float("nan")
    return 0.0 if np.any(present == 0) else float(present.size / np.sum(1.0 / present))


def geometric_mean(values: Floats) -> float:
    """Geometric mean of what is not NaN; 0 as soon as one value is 0."""
    present = values[~np.isnan(values)]
    if not present.size:
        return float("nan")
    return 0.0 if np.any(present == 0) else float(np.exp(np.log(present).mean()))


def scores(predictions: Predictions, tail: LongTail, bins: int = 15) -> dict[str, float]:
    """Every number of the result tables.

    "overall" is the share of test images that were recognised; a group's number is the unweighted mean over its
    classes' accuracies, groups being made from TRAIN counts; the means over classes leave out classes without test
    images.
    """
    labels, predicted = predictions.labels, predictions.predicted
    right = labels == predicted
    accuracy = per_class_accuracy(labels, predicted, tail.num_classes)
    found = {"overall": float(100.0 * right.mean())}
    found |= {group: mean(accuracy[tail.groups[group]]) for group in GROUPS}
    found |= {
        "class_mean": mean(accuracy),
        "macro_f1": macro_f1(labels, predicted),
        "harmonic_mean": harmonic_mean(accuracy),
        "geometric_mean": geometric_mean(accuracy),
        "worst_class": float(np.nanmin(accuracy)),
        "ece": expected_calibration_error(predictions.confidence, right, bins),
        "nll": float(predictions.nll.mean()),
    }
    for group in GROUPS:
        member = np.isin(labels, tail.groups[group])
        found[f"ece_{group}"] = expected_calibration_error(predictions.confidence[member], right[member], bins)
        found[f"nll_{group}"] = mean(predictions.nll[member])
    return found
