"""A linear classifier guided by one direction per class. Reconstruction, not verified against the authors' code.

[0] Fu, He, Ding, Cao, Wang. Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail
    Recognition. arXiv 2308.12522, 2023. (class feature prototype-guided classifier; no code is public)

    z_c = w_c . e + b_c + alpha * s * cos(e, m_c)
    m_c <- mu m_c + (1 - mu) mean of the unit embeddings of class c in the batch      for the classes in it

A learned classifier favours frequent classes, whose samples dominate its gradient. The second term compensates for
this, since class frequencies do not affect a mean.

The prior affects the first term only, since the guide is not trained with the loss. A loss that adds to the logits
(balanced_softmax, logit_adjustment) needs no change: (w.e + b + log pi) + guide and (w.e + b + guide) + log pi are the
same sum. A loss that treats logits in another way (vs divides them, ldam and gaussian_clouded read them as cosines,
seesaw and lade depend on their size) sees the sum as one classifier.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Natural, NonNegative, Positive, Seed, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head, check_rows, linear_layer
from imbalance_vlm.heads.feature_adapter import FeatureAdapter
from imbalance_vlm.heads.prototype import PrototypeAssign, PrototypeKind


@torch.no_grad()
def moved_means(means: Tensor, embeddings: Tensor, targets: Tensor, momentum: float) -> Tensor:
    """(C, d) means after a batch of embeddings (N, d) and targets (N,): m_c <- mu m_c + (1 - mu) batch mean.

    A class that is not in the batch keeps its mean; a mean that is still zero is replaced by that of the batch. The
    sums are at least in float32: bfloat16 cannot count beyond 256.
    """
    exact = torch.promote_types(means.dtype, torch.float32)
    unit = F.normalize(embeddings.to(exact), dim=-1)
    sums = torch.zeros_like(means, dtype=exact).index_add_(0, targets, unit)  # (C, d)
    sizes = sums.new_zeros(len(means)).index_add_(0, targets, sums.new_ones(len(targets)))[:, None]  # (C, 1)
    batch_means = sums / sizes.clamp_min(1.0)
    has_mean = means.ne(0).any(1, keepdim=True)
    moved = torch.where(has_mean, momentum * means + (1.0 - momentum) * batch_means, batch_means)
    return torch.where(sizes > 0, moved, means).to(means.dtype)


class PrototypeGuidedHead(Head):
    """A linear classifier plus the cosine to a class mean or prototype: (B, w) -> (B, C).

    Args:
        width: w.
        num_classes: C.
        directions: (C, w) unit rows that the guide starts from; None for no guide of a class before its first batch.
        guide: "moving" for a moving average of the embeddings of each class, "fixed" for the directions themselves.
        init: where the guide starts: "class_mean" (the classes' mean training features), "text" (the text features of
            the class names), "prototype" (uniform prototypes) or "random" (at zero).
        assign: how prototypes are assigned to classes, as in head "prototype".
        kind: kind of prototypes, as in `create_prototypes`.
        prototype_seed: seed of the rotation of the prototypes.
        alpha: strength of the guide; 0 is a linear classifier.
        scale: scale s of the cosines.
        momentum: momentum mu of the moving average.
        bias: whether the classifier has a bias b.
        adapter: hidden width of a residual bottleneck before the classifier; 0 for none. Prototypes need one, since
            frozen features cannot move to them.

    Raises:
        InputError: directions of another shape, a fixed guide without directions, or prototypes without an adapter.
    """

    means: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        guide: Literal["moving", "fixed"] = "moving",
        init: Literal["class_mean", "text", "prototype", "random"] = "class_mean",
        assign: PrototypeAssign = "class_mean",
        kind: PrototypeKind = "auto",
        prototype_seed: Seed = 0,
        alpha: NonNegative = 1.0,
        scale: Positive = 25.0,
        momentum: Share = 0.9,
        bias: bool = True,
        adapter: Natural = 0,
    ) -> None:
        super().__init__()
        if guide == "fixed" and directions is None:
            raise InputError(
                "`guide` 'fixed' needs `directions`, got none; set `init` to class_mean, text or prototype"
            )
        if init == "prototype" and not adapter:
            raise InputError(
                "`init` 'prototype' needs `adapter` >= 1, since frozen features cannot move to prototypes, got 0; set "
                "adapter to a width such as 128, or init to class_mean"
            )
        self.layer = linear_layer(width, num_classes, bias=bias)
        start = torch.zeros(num_classes, width) if directions is None else directions.detach().clone()
        check_rows("directions", start, num_classes, width)
        self.register_buffer("means", start)  # (C, w) m
        self.adapter = FeatureAdapter(width, adapter) if adapter else None
        self.guide = guide
        self.strength = alpha * scale
        self.momentum = momentum

    def embed(self, features: Tensor) -> Tensor:
        """(B, w) of norm sqrt(w), after the adapter too: then cos(e, m) = e . m / (sqrt(w) |m|) is linear in e."""
        length = features.shape[-1] ** 0.5
        embeddings = F.normalize(features, dim=-1) * length
        return embeddings if self.adapter is None else F.normalize(self.adapter(embeddings), dim=-1) * length

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        guide = F.normalize(self.means, dim=-1) / self.means.shape[-1] ** 0.5
        return self.layer.weight + self.strength * guide, self.layer.bias

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        if self.guide == "moving":
            self.means.copy_(moved_means(self.means, embeddings, targets, self.momentum))
