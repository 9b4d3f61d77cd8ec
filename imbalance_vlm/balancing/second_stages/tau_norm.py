"""tau-normalisation: the norms of the classifier's weights made more equal.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Section 4.3.
[1] github.com/facebookresearch/classifier-balancing, tau_norm.py

    z_c = w_c . f / |w_c|^tau,   no bias

tau 0 keeps the weights, tau 1 makes all norms 1, and a larger one reverses the order of the norms. tau is chosen among
0, .1, .. 2 by the mean of the per-class accuracies, as in [1]; the smallest if several are best. The rows of a cosine
head already have the same norm, so that no tau changes its predictions.

Differs from [1] in: a row of zeros gives logits of 0, not nan.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage, batches_in_order
from imbalance_vlm.balancing.selection import best, class_mean_accuracy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.errors import InputError

TAUS = tuple(round(0.1 * step, 1) for step in range(21))


def remaining_norms(weight: Tensor, tau: float) -> Tensor:
    """(C,) norms |w_c|^(1 - tau) of the tau-normalised rows of `weight` (C, d); finite also for a row of zeros."""
    return weight.norm(dim=1).clamp_min(1e-12).pow(1.0 - tau)


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """(C, d) rows w_c / |w_c|^tau."""
    return remaining_norms(weight, tau)[:, None] * F.normalize(weight, dim=1)


class TauNorm(SecondStage):
    """The first stage's weights, normalised to a degree chosen on the validation set; nothing is trained.

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
        tau = choose_tau(weight, stage) if self.tau is None else self.tau
        self.weight.copy_(tau_normalised(weight, tau))
        return {"tau": tau} if self.tau is None else {}

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.weight.t()


def choose_tau(weight: Tensor, stage: Stage) -> float:
    """The tau of TAUS that is best on the validation set.

    One matrix product serves all taus: they share the directions and differ by one factor per class.

    Raises:
        InputError: no validation set.
    """
    if stage.validation is None:
        raise InputError(
            "`tau` must be a number where the dataset has no validation set to choose it on, got null; set tau, or "
            "give the dataset a validation split"
        )
    directions = F.normalize(weight, dim=1)
    batches = list(batches_in_order(stage.validation))
    projections = torch.cat([embeddings for embeddings, _ in batches]) @ directions.t()  # (N, C): |f| cos(f, w_c)
    labels = torch.cat([labels for _, labels in batches])  # (N,)
    return best(TAUS, lambda tau: class_mean_accuracy(projections * remaining_norms(weight, tau), labels))
