"""Balanced softmax.

[0] Ren, Yu, Sheng, Ma, Zhao, Yi, Li. Balanced Meta-Softmax for Long-Tailed Visual Recognition. NeurIPS 2020.
    Equation 4.

    L = -log (n_y exp z_y / sum_c n_c exp z_c)

It is logit adjustment with tau 1: log n and log pi differ by the constant log N, which does not change a softmax. The
log prior is used here because it keeps the shifted logits small, which matters in bfloat16.
"""

from __future__ import annotations

from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, log_prior
from imbalance_vlm.balancing.losses.logit_adjustment import logit_adjustment
from imbalance_vlm.components.ranges import Share
from imbalance_vlm.long_tail import LongTail


class BalancedSoftmax(Loss):
    """Balanced softmax.

    Args:
        long_tail: class counts; a class without images is left out of the softmax.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
    """

    def __init__(self, long_tail: LongTail, *, label_smoothing: Share = 0.0, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logit_adjustment(logits, targets, log_prior(self.counts, logits), 1.0, self.label_smoothing)
