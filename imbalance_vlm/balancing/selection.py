"""Choosing a setting on the validation set, by the mean of the per-class accuracies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def class_mean_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy per class, averaged over the classes that occur in `labels`, in percent.

    All classes count equally, so that a validation set as skewed as the training set does not favour the head classes.

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    correct = (logits.argmax(1) == labels).double()  # (N,)
    total = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device).index_add(0, labels, correct)
    counts = torch.bincount(labels, minlength=logits.shape[1])
    return float(100.0 * (total / counts.clamp_min(1)).sum() / (counts > 0).sum())


def best(candidates: Sequence[float], score: Callable[[float], float]) -> float:
    """The candidate with the highest score; the first one if several have it."""
    return max(candidates, key=score)
