"""A linear classifier guided by one direction per class. Reconstruction, not verified against the authors' code.

[0] Fu, He, Ding, Cao, Wang. Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail
    Recognition. arXiv 2308.12522, 2023. (class feature prototype-guided classifier; no code is public)

    z_c = w_c . e + b_c + alpha * s * cos(e, m_c)
    m_c <- mu m_c + (1 - mu) mean of the unit embeddings of class c in the batch      for the classes it holds

A learned classifier favours frequent classes, whose samples dominate its gradient; a class mean is as well defined for
a rare class, so that the second term keeps what the first loses.

The prior affects the first term only, since the guide is not trained with the loss. For a loss that adds to the logits
(balanced_softmax, logit_adjustment) there is nothing to do: (w.e + b + log pi) + guide and (w.e + b + guide) + log pi
are the same sum. A loss that treats logits in another way (vs divides them, ldam and gaussian_clouded read them as
cosines, seesaw and lade depend on their size) sees the sum as one classifier.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Natural, NonNegative, Positive, Seed, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.feature_adapter import FeatureAdapter
from imbalance_vlm.heads.prototype import PrototypeAssign, PrototypeKind


@torch.no_grad()
def moved_means(means: Tensor, embeddings: Tensor, targets: Tensor, momentum: float) -> Tensor:
    """(C, d) means after a batch of embeddings (N, d) and targets (N,): m_c <- mu m_c + (1 - mu) batch mean.

    A class that the batch does not hold keeps its mean; one whose mean is still zero takes the batch's as it is. The
    sums are at least in float32: bfloat16 cannot count beyond 256.
    """
    exact = torch.promote_types(means.dtype, torch.float32)
    unit = F.normalize(embeddings.to(exact), dim=-1)
    sums = torch.zeros_like(means, dtype=exact).index_add_(0, targets, unit)  # (C, d)
    sizes = sums.new_zeros(len(means)).index_add_(0, targets, sums.new_ones(len(targets)))[:, None]  # (C, 1)
    batch = sums / sizes.clamp_min(1.0)
    started = means.ne(0).any(1, keepdim=True)
    moved = torch.where(started, momentum * means + (1.0 - momentum) * batch, batch)
    return torch.where(sizes > 0, moved, means).to(means.dtype)


class PrototypeGuidedHead(Head):
    """A linear classifier plus the cosine to a class mean or prototype: (B, w) -> (B, C).

    Args:
        width: w.
        num_classes: C.
        directions: (C, w) unit rows that the guide starts from. None: a class has no guide before its first batch.
        guide: "moving", a moving average of the embeddings of each class, or "fixed", the directions as they start.
        init: where the guide starts: "class_mean" (the classes' mean training features), "text" (the text features of
            the class names), "prototype" (uniform prototypes) or "random" (nothing).
        assign: which prototype belongs to which class, as in head "prototype".
        kind: kind of prototypes, as in `create_prototypes`.
        prototype_seed: seed of their rotation.
        alpha: strength of the guide; 0 is a linear classifier.
        scale: s, the scale of the cosines.
        momentum: mu, the momentum of the moving average.
        bias: whether there is a b.
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
        if directions is not None and directions.shape != (num_classes, width):
            raise InputError(
                f"`directions` must be one row per class, ({num_classes}, {width}), got {tuple(directions.shape)}"
            )
        if guide == "fixed" and directions is None:
            raise InputError(
                "`guide` 'fixed' needs `directions`, got none; set `init` to class_mean, text or prototype"
            )
        if init == "prototype" and not adapter:
            raise InputError(
                "`init` 'prototype' needs `adapter` >= 1, since frozen features cannot move to prototypes, got 0; set "
                "adapter to a width such as 128, or init to class_mean"
            )
        self.layer = nn.Linear(width, num_classes, bias=bias)
        if bias:
            nn.init.zeros_(self.layer.bias)
        start = torch.zeros(num_classes, width) if directions is None else directions.detach().clone()
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
