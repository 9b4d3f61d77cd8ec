"""tau-normalisation: the norms of the classifier's weights evened out.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Section 4.3.
[1] github.com/facebookresearch/classifier-balancing, tau_norm.py

    z_c = w_c . f / |w_c|^tau,   no bias

tau 0 leaves the weights as they are, tau 1 makes all norms 1, beyond that the order of the norms is reversed. tau is
chosen among 0, .1, .. 2 by the mean of the classes' accuracies, as in [1]; among equals the smallest. A head on cosines
has rows of one norm already: every tau gives its own predictions back.

Differs from [1] in: a row of zeros gives logits of 0, not nan.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.balancing.selection import best, class_mean_accuracy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.errors import InputError

TAUS = tuple(round(0.1 * step, 1) for step in range(21))
ROWS = 1024
"""Embeddings taken at a time."""


def remaining_norms(weight: Tensor, tau: float) -> Tensor:
    """(C,) norms |w_c|^(1 - tau) of the tau-normalised rows of `weight` (C, d); finite also for a row of zeros."""
    return weight.norm(dim=1).clamp_min(1e-12).pow(1.0 - tau)


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """(C, d) rows w_c / |w_c|^tau."""
    return remaining_norms(weight, tau)[:, None] * F.normalize(weight, dim=1)


class TauNorm(SecondStage):
    """The first stage's weights, normalised as far as the validation set likes it; nothing is trained.

    Args:
        width: d.
        num_classes: C.
        tau: exponent, >= 0; null chooses it on the validation set.
    """

    weight: Tensor

    def __init__(self, width: int, num_classes: int, *, tau: NonNegative | None = None) -> None:
        super().__init__(width, num_classes)
        self.tau = tau
        self.register_buffer("weight", torch.zeros(num_classes, width))

    @property
    def needs_validation(self) -> bool:
        return self.tau is None

    @torch.no_grad()
    def fit(self, stage: Stage) -> dict[str, float]:
        weight = stage.weight()
        tau = chosen_tau(weight, stage) if self.tau is None else self.tau
        self.weight.copy_(tau_normalised(weight, tau))
        return {"tau": tau} if self.tau is None else {}

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.weight.t()


def chosen_tau(weight: Tensor, stage: Stage) -> float:
    """The tau of TAUS that is best on the validation set.

    Its embeddings meet the weights once: all taus share the directions and differ by one factor a column.

    Raises:
        InputError: no validation set.
    """
    if stage.validation is None:
        raise InputError(
            "second stage 'tau_norm': `tau` null is chosen on a validation set, got a dataset without one; set tau, "
            "or give the dataset a validation split"
        )
    directions = F.normalize(weight, dim=1)
    rows = torch.arange(len(stage.validation)).split(ROWS)
    pairs = list(stage.validation.batches(rows))
    along = torch.cat([embeddings for embeddings, _ in pairs]) @ directions.t()  # (N, C): |f| cos(f, w_c)
    labels = torch.cat([labels for _, labels in pairs])  # (N,)
    return best(TAUS, lambda tau: class_mean_accuracy(along * remaining_norms(weight, tau), labels))
