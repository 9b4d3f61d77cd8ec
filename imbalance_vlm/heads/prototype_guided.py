"""A linear classifier guided by one direction a class. Reconstruction, not verified against the authors' code.

[0] Fu, He, Ding, Cao, Wang. Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail
    Recognition. arXiv 2308.12522, 2023. (class feature prototype-guided classifier; no code is public)

    z_c = w_c . e + b_c + alpha * s * cos(e, m_c)
    m_c <- mu m_c + (1 - mu) mean of the unit embeddings of class c in the batch      for the classes it holds

A learned classifier favours the head, whose samples push its rows about; a class mean is as long and as much its own
for the tail, so that the second term holds up what the first loses.

The prior belongs to the first term only, as the guide has learned nothing from it. For a loss that adds to the logits
(balanced_softmax, logit_adjustment) there is nothing to do: (w.e + b + log pi) + guide and (w.e + b + guide) + log pi
are the same sum. A loss that does anything else with logits (vs divides them, ldam and gaussian_clouded take them for
cosines, seesaw and lade read how large they are) treats the sum as one classifier.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Natural, NonNegative, Positive, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.adapter import Adapter
from imbalance_vlm.heads.base import Head
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
        directions: (C, w) unit rows: the class means to start from, or the prototypes. None: a class has no guide
            before its first batch.
        guide: what m_c is: "class_mean", a moving average of the embeddings, or "prototype", which stays as given.
        init: what class means start from: "class_mean" (those of the training features), "text" (the text features of
            the class names) or "random" (nothing).
        assign: how prototypes come to their classes, as in head "prototype".
        kind: of the prototypes, as in `create_prototypes`.
        prototype_seed: of the rotation of the prototypes.
        alpha: strength of the guide; 0 is a linear classifier.
        scale: s, of the cosines.
        momentum: mu, of the class means.
        bias: whether there is a b.
        adapter: hidden width of a residual bottleneck before the classifier; 0 for none. Prototypes need one: frozen
            features have nothing to do with where prototypes are.

    Raises:
        InputError: directions of another shape, or prototypes that nothing can move to.
    """

    means: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        guide: Literal["class_mean", "prototype"] = "class_mean",
        init: Literal["class_mean", "text", "random"] = "class_mean",
        assign: PrototypeAssign = "class_mean",
        kind: PrototypeKind = "auto",
        prototype_seed: Natural = 0,
        alpha: NonNegative = 1.0,
        scale: Positive = 25.0,
        momentum: Share = 0.9,
        bias: bool = True,
        adapter: Natural = 0,
    ) -> None:
        super().__init__()
        if directions is not None and directions.shape != (num_classes, width):
            raise InputError(
                f"`directions` must be one row a class, ({num_classes}, {width}), got {tuple(directions.shape)}"
            )
        if guide == "prototype" and not (adapter and directions is not None):
            raise InputError(
                "`guide` 'prototype' needs `directions` (the prototypes) and `adapter` >= 1, by which features come "
                "to them; give both or use guide='class_mean'"
            )
        self.layer = nn.Linear(width, num_classes, bias=bias)
        if bias:
            nn.init.zeros_(self.layer.bias)
        start = torch.zeros(num_classes, width) if directions is None else directions.detach().clone()
        self.register_buffer("means", start)  # (C, w) m
        self.adapter = Adapter(width, adapter) if adapter else None
        self.guide = guide
        self.strength = alpha * scale
        self.momentum = momentum

    @property
    def learns_embedding(self) -> bool:
        return self.adapter is not None

    def embed(self, features: Tensor) -> Tensor:
        """(B, w) of norm sqrt(w), behind the adapter too: then cos(e, m) = e . m / (sqrt(w) |m|) is linear in e."""
        length = features.shape[-1] ** 0.5
        embeddings = F.normalize(features, dim=-1) * length
        return embeddings if self.adapter is None else F.normalize(self.adapter(embeddings), dim=-1) * length

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        guide = F.normalize(self.means, dim=-1) / self.means.shape[-1] ** 0.5
        return self.layer.weight + self.strength * guide, self.layer.bias

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        if self.guide == "class_mean":
            self.means.copy_(moved_means(self.means, embeddings, targets, self.momentum))
