"""NCM: the nearest class mean.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Section 4.2.
[1] github.com/facebookresearch/classifier-balancing, models/KNNClassifier.py and get_knncentroids in run_networks.py
    (centred, Euclidean)

    x = (f - m) / |f - m|                       m the mean of all training embeddings, or 0
    mu_c = mean of x over the training images of class c
    z_c = s x . mu_c / |mu_c|                   cosine
    z_c = -s/2 |x - mu_c|^2                     Euclidean

With x of norm 1 the two differ only by the norms of the means, which are small for spread-out classes. s changes no
prediction, only the confidence: the Euclidean logits are those of Gaussians of variance 1/s about the means.

Differs from [1] in: the logits have a scale; the cosine divides by the norm of the mean, where [1] divides by d;
a class without images has logit -inf, and is never predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage, batches_in_order
from imbalance_vlm.components.ranges import Positive
from imbalance_vlm.encoders.sources import Source

Metric = Literal["cosine", "euclidean"]


def similarity(unit: Tensor, means: Tensor, metric: Metric) -> Tensor:
    """(B, C) cosines, or minus half the squared distances, of unit rows (B, d) to class means (C, d)."""
    if metric == "cosine":
        return unit @ F.normalize(means, dim=1).t()
    squares = unit.square().sum(1, keepdim=True) + means.square().sum(1)  # (B, C)
    return unit @ means.t() - squares / 2


def class_sums(
    source: Source, transform: Callable[[Tensor], Tensor], num_classes: int, width: int
) -> tuple[Tensor, Tensor]:
    """(C, d) float64 sums of each class's embeddings after `transform`, and (C,) sizes of the classes."""
    sums = torch.zeros(num_classes, width, dtype=torch.float64, device=source.labels.device)
    for embeddings, labels in batches_in_order(source):
        sums.index_add_(0, labels, transform(embeddings).double())
    return sums, torch.bincount(source.labels, minlength=num_classes)


class NCM(SecondStage):
    """Scores an image by its distance to the mean of each class; nothing is trained, and class sizes have no effect.

    Args:
        width: d.
        num_classes: C.
        metric: "cosine" or "euclidean".
        centre: whether to subtract the mean of all training embeddings first, since features that share a large common
            part are otherwise nearly equal.
        scale: scale s of the logits; 16 has about the highest likelihood on Icons-LT. The post-hoc correction
            `temperature` fits it to other data.
    """

    centre: Tensor
    means: Tensor
    there: Tensor

    def __init__(
        self, width: int, num_classes: int, *, metric: Metric = "cosine", centre: bool = True, scale: Positive = 16.0
    ) -> None:
        super().__init__(width, num_classes)
        self.metric: Metric = metric
        self.subtract_mean = centre
        self.scale = scale
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("means", torch.zeros(num_classes, width))
        self.register_buffer("there", torch.zeros(num_classes, dtype=torch.bool))  # classes with images

    @torch.no_grad()
    def fit(self, stage: Stage) -> dict[str, float]:
        shape = (self.num_classes, self.width)
        if self.subtract_mean:
            total = class_sums(stage.train, lambda embeddings: embeddings, *shape)[0].sum(0)  # (d,)
            self.centre.copy_(total / len(stage.train))
        sums, sizes = class_sums(stage.train, self.unit, *shape)
        self.means.copy_(sums / sizes.clamp_min(1)[:, None])
        self.there.copy_(sizes > 0)
        return {}

    def unit(self, embeddings: Tensor) -> Tensor:
        """(B, d) x of embeddings (B, d)."""
        return F.normalize(embeddings - self.centre, dim=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self.scale * similarity(self.unit(embeddings), self.means, self.metric)
        return logits.masked_fill(~self.there, -torch.inf)
