"""Logit adjustment after training.

[0] Menon, Jayasumana, Rawat, Jain, Veit, Kumar. Long-Tail Learning via Logit Adjustment. ICLR 2021. Equation 9.

    argmax_c z_c - tau log pi_c,   pi_c = n_c / N

With tau 1 and logits that contain the training prior, as those of cross-entropy do, the result is the prediction under
a uniform prior. Logits of a balanced loss contain no prior: the adjustment would favour rare classes twice.

Differs from [0] in: tau may be chosen on the validation set; a class without images, whose adjustment would be
infinite, is never predicted, whatever tau is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import exact, log_prior
from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.balancing.selection import best, class_mean_accuracy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail

TENTHS = range(21)
"""Candidates for a strength that is left open, in tenths: 0, .1, .. 2."""


def adjusted(logits: Tensor, log_prior: Tensor, tau: Tensor | float) -> Tensor:
    """z - tau log pi, (N, C), (C,) -> (N, C); -inf for a class whose `log_prior` is -inf, also at tau 0."""
    bias = torch.where(torch.isneginf(log_prior), log_prior, -tau * log_prior)  # (C,)
    return logits + bias.to(logits.dtype)


class LogitAdjustment(PostHoc):
    """Subtracts tau times the log training prior from the logits.

    Args:
        long_tail: the training counts; a class without images is never predicted (its logit becomes -inf).
        tau: strength, >= 0; 0 changes nothing. null chooses among 0, .1, .. 2 by the class-mean accuracy on the
            validation set (the smallest if several are best); it is 1 before `fit`.
    """

    counts: Tensor
    tenths: Tensor

    def __init__(self, long_tail: LongTail, *, tau: NonNegative | None = None) -> None:
        super().__init__(long_tail)
        self.tau = tau
        self.register_buffer("counts", torch.as_tensor(long_tail.counts))  # (C,) int64: exact in any dtype
        self.register_buffer("tenths", torch.tensor(10))  # () int64: the chosen tau, exact as well

    @property
    def needs_validation(self) -> bool:
        return self.tau is None

    @torch.no_grad()
    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        if self.tau is not None:
            return {}
        if logits is None or labels is None:
            raise InputError(
                "`tau` must be a number where the dataset has no validation set to choose it on, got null; set tau "
                "(1 is the paper's), or give the dataset a validation split"
            )
        prior = self._log_prior(logits)
        tenths = int(best(TENTHS, lambda k: class_mean_accuracy(adjusted(logits, prior, k / 10), labels)))
        self.tenths.fill_(tenths)
        return {"tau": tenths / 10}

    def forward(self, logits: Tensor) -> Tensor:
        prior = self._log_prior(logits)
        tau = self.tenths.to(prior.dtype) / 10 if self.tau is None else self.tau
        return adjusted(logits, prior, tau)

    def _log_prior(self, like: Tensor) -> Tensor:
        """(C,), in at least float32."""
        return log_prior(self.counts, exact(self.counts, like))
