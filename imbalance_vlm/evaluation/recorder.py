"""Four numbers per image of the test pass, collected batch by batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import check_logits, class_indices
from imbalance_vlm.evaluation.base import Evaluator
from imbalance_vlm.evaluation.metrics import Predictions


class PredictionRecorder(Evaluator):
    """Collects `Predictions` from logits (B, C) and labels (B,).

    Only four numbers per image are kept: the logits of 24,426 images over 8,142 classes would take 800 MB. Outputs of
    another shape (per pixel, several labels per image) have no single predicted class, and are left out.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        check_logits(logits)
        if logits.ndim != 2 or getattr(targets, "ndim", 1) != 1:
            return
        targets = class_indices(targets, logits)
        log_probs = logits.float().log_softmax(dim=1)  # (B, C)
        best, predicted = log_probs.max(dim=1)
        nll = -log_probs.gather(1, targets[:, None]).squeeze(1)
        self._batches.append((targets, predicted, best.exp(), nll))

    def predictions(self) -> Predictions:
        """The predictions so far, in the order in which the images came."""
        if not self._batches:
            return Predictions(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))
        labels, predicted, confidence, nll = (
            torch.cat(parts).cpu().numpy() for parts in zip(*self._batches, strict=True)
        )
        return Predictions(
            labels.astype(np.int64),
            predicted.astype(np.int64),
            confidence.astype(np.float64),
            nll.astype(np.float64),
        )
