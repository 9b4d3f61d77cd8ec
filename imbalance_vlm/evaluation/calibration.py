"""Calibration: whether the predicted probabilities are those of being right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.evaluation.base import Column, Evaluator
from imbalance_vlm.evaluation.metrics import expected_calibration_error, mean
from imbalance_vlm.evaluation.recorder import PredictionRecorder
from imbalance_vlm.long_tail import GROUPS, LongTail


class Calibration(Evaluator):
    """Expected calibration error (percent) and negative log-likelihood (nats), over all images and for each group.

    Args:
        long_tail: gives the groups; a group's numbers are those of its classes' test images.
        bins: number of bins of the calibration error.
    """

    columns = tuple(
        column
        for suffix in ("", *(f"_{group}" for group in GROUPS))
        for column in (
            Column(f"ece{suffix}", smaller_is_better=True),
            Column(f"nll{suffix}", digits=3, smaller_is_better=True),
        )
    )

    def __init__(self, long_tail: LongTail, *, bins: Count = 15) -> None:
        self.long_tail = long_tail
        self.bins = bins
        self.recorder = PredictionRecorder()

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.recorder.update(logits, targets)

    def compute(self) -> Iterator[tuple[str, float]]:
        predictions = self.recorder.predictions()
        parts = {"": predictions}
        for group in GROUPS:
            parts[f"_{group}"] = predictions[np.isin(predictions.labels, self.long_tail.groups[group])]
        for suffix, part in parts.items():
            yield f"ece{suffix}", expected_calibration_error(part.confidence, part.correct, self.bins)
            yield f"nll{suffix}", mean(part.nll)
