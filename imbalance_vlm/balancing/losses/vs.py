"""Vector scaling (VS).

[0] Kini, Paraskevas, Oymak, Thrampoulidis. Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization. NeurIPS 2021.

    L = -log softmax(z / D + tau * log pi)_y,   D_c = (n_max / n_c)^gamma

gamma 0 is logit adjustment; tau 0 is class-dependent temperatures (CDT; Ye et al. 2020), except that classes
without images are left out.

Differs from [0] in: no weights omega_y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, exact, log_prior, shift, smoothed_cross_entropy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.long_tail import LongTail


def multipliers(counts: Tensor, like: Tensor, gamma: float) -> Tensor:
    """(C,) 1 / D_c = (n_c / n_max)^gamma."""
    numbers = exact(counts, like)
    return ((numbers / numbers.max()) ** gamma).to(like.dtype)


def vs(logits: Tensor, targets: Tensor, log_prior: Tensor, multipliers: Tensor, tau: float) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,), with `log_prior` and `multipliers` (C,)."""
    return smoothed_cross_entropy(torch.addcmul(shift(log_prior, tau), logits, multipliers), targets)


class VS(Loss):
    """Cross-entropy on logits that are scaled down for rare classes and shifted by the log prior.

    Args:
        long_tail: class counts; a class without images is left out of the softmax.
        gamma: exponent of the scaling, >= 0; 0 is logit adjustment.
        tau: strength of the shift, >= 0; 0 is class-dependent temperatures.
    """

    def __init__(
        self,
        long_tail: LongTail,
        *,
        gamma: NonNegative = 0.3,
        tau: NonNegative = 1.0,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.gamma = gamma
        self.tau = tau

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        scaling = multipliers(self.counts, logits, self.gamma)
        return vs(logits, targets, log_prior(self.counts, logits), scaling, self.tau)
