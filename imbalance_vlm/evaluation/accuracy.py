"""Accuracy on a balanced or long-tailed test set, over images, groups and classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from imbalance_vlm.components.ranges import Percentage
from imbalance_vlm.evaluation.base import Column, Evaluator
from imbalance_vlm.evaluation.metrics import (
    accuracy,
    geometric_mean,
    harmonic_mean,
    macro_f1,
    mean,
    per_class_accuracy,
)
from imbalance_vlm.evaluation.recorder import PredictionRecorder
from imbalance_vlm.long_tail import GROUPS, LongTail


class Accuracy(Evaluator):
    """Accuracy over all images, over many, medium and few, and means over classes; all in percent.

    "overall" is the share of test images that were recognised. A group's number is the unweighted mean of its classes'
    accuracies; groups are made from TRAIN counts. Means over classes leave out classes without test images.

    Args:
        long_tail: gives the groups.
        harmonic_floor: smallest accuracy of a class in the harmonic mean, in percent; 0 makes the mean 0 as soon as one
            class is never recognised, .001 is LIFT's.
    """

    columns = (
        *(Column(name, deviation=True) for name in ("overall", *GROUPS)),
        *map(Column, ("class_mean", "macro_f1", "harmonic_mean", "geometric_mean", "worst_class")),
    )

    def __init__(self, long_tail: LongTail, *, harmonic_floor: Percentage = 0.0) -> None:
        self.long_tail = long_tail
        self.harmonic_floor = harmonic_floor
        self.recorder = PredictionRecorder()

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.recorder.update(logits, targets)

    def compute(self) -> Iterator[tuple[str, float]]:
        predictions = self.recorder.predictions()
        labels, predicted = predictions.labels, predictions.predicted
        by_class = per_class_accuracy(labels, predicted, self.long_tail.num_classes)  # (C,)
        yield "overall", accuracy(predictions.correct)
        for group in GROUPS:
            yield group, mean(by_class[self.long_tail.groups[group]])
        yield "class_mean", mean(by_class)
        yield "macro_f1", macro_f1(labels, predicted)
        yield "harmonic_mean", harmonic_mean(np.maximum(by_class, self.harmonic_floor))
        yield "geometric_mean", geometric_mean(by_class)
        yield "worst_class", float(np.nanmin(by_class)) if len(labels) else float("nan")
