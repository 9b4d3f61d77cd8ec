"""A second stage that chooses its setting on the validation set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage, batches_in_order
from imbalance_vlm.balancing.selection import best, class_mean_accuracy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.errors import InputError

FACTORS = (1.0, 0.5, 0.0)


class ScaledBias(SecondStage):
    """The first stage's classifier with its bias times a factor: a bias prefers the classes that were seen most.

    Args:
        width: of the embeddings.
        num_classes: C.
        factor: null chooses 1, 0.5 or 0 on the validation set; of ties, the largest.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, num_classes: int, *, factor: NonNegative | None = None) -> None:
        super().__init__(width, num_classes)
        self.factor = factor
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))

    @property
    def needs_validation(self) -> bool:
        return self.factor is None

    @torch.no_grad()
    def fit(self, stage: Stage) -> dict[str, float]:
        self.weight.copy_(stage.weight())
        factor = self._chosen(stage) if self.factor is None else self.factor
        self.bias.copy_(factor * stage.bias())
        return {"factor": factor} if self.factor is None else {}

    def _chosen(self, stage: Stage) -> float:
        if stage.validation is None:
            raise InputError("`factor` must be a number where there is no validation set to choose it on, got null")
        batches = list(batches_in_order(stage.validation))
        products = torch.cat([embeddings @ self.weight.T for embeddings, _ in batches])  # (N, C)
        labels = torch.cat([labels for _, labels in batches])  # (N,)
        bias = stage.bias()
        return best(FACTORS, lambda factor: class_mean_accuracy(products + factor * bias, labels))

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.linear(embeddings, self.weight, self.bias)
