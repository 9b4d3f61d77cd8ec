"""Softmax cross-entropy, the baseline of every table.

L = -log softmax(z)_y
"""

from __future__ import annotations

from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, smoothed_cross_entropy
from imbalance_vlm.components.ranges import Share
from imbalance_vlm.long_tail import LongTail


class CrossEntropy(Loss):
    """Cross-entropy.

    Args:
        long_tail: class counts (only their number matters here).
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    def __init__(self, long_tail: LongTail, *, label_smoothing: Share = 0.0, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return smoothed_cross_entropy(logits, targets, self.label_smoothing)
