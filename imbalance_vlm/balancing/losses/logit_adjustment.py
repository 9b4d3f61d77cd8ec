"""Logit adjustment, the loss.

[0] Menon, Jayasumana, Rawat, Jain, Veit, Kumar. Long-Tail Learning via Logit Adjustment. ICLR 2021. Equation 10.

    L = -log softmax(z + tau * log pi)_y,   pi_c = n_c / N
"""

from __future__ import annotations

from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, log_prior, shift, smoothed_cross_entropy
from imbalance_vlm.components.ranges import NonNegative, Share
from imbalance_vlm.long_tail import LongTail


def logit_adjustment(
    logits: Tensor, targets: Tensor, log_prior: Tensor, tau: float, label_smoothing: float = 0.0
) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,), with `log_prior` (C,) in which -inf leaves a class out."""
    return smoothed_cross_entropy(logits + shift(log_prior, tau), targets, label_smoothing)


class LogitAdjustment(Loss):
    """Cross-entropy on logits shifted by the log prior, so that the raw logits estimate a balanced posterior.

    Args:
        long_tail: class counts; a class without images is left out of the softmax.
        tau: strength, >= 0; 1 is Bayes-consistent for balanced accuracy, 0 is cross-entropy.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
    """

    def __init__(
        self,
        long_tail: LongTail,
        *,
        tau: NonNegative = 1.0,
        label_smoothing: Share = 0.0,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.tau = tau
        self.label_smoothing = label_smoothing

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logit_adjustment(logits, targets, log_prior(self.counts, logits), self.tau, self.label_smoothing)
