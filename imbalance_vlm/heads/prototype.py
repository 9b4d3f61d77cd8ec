"""A classifier that is given: one fixed prototype a class, and features that learn to come to it.

[0] Yang, Chen, Li, Xie, Lin, Tao. Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a Learnable
    Classifier at the End of Deep Neural Network? NeurIPS 2022. (fixed simplex classifier, dot-regression loss)
[1] Li, Cao, Yuan, Fan, Yang, Feris, Indyk, Katabi. Targeted Supervised Contrastive Learning for Long-Tailed
    Recognition. CVPR 2022. (uniform targets for any number of classes, matched to the classes)

    e = A f + b, or f + U relu(V f)          P (C, w) unit rows, never trained
    z_c = s * cos(e, p_c)                    normalise
    z_c = e . p_c                            not

The tail has as much room as the head, as no gradient can move a prototype.

The dot-regression loss wants z = e . p: `normalise` with scale 1, or no `normalise`. On unit embeddings it ends on the
prototypes. The gradient at raw ones lies along the prototype, whose embedding gets longer and longer and keeps what it
has across; three classes that end at cosine -.5 in the first way were far from it in the second.

Differs from [0] in: the prototypes may be more than w + 1, of any kind of `create_prototypes`; with frozen features
the map A is what a backbone is there; it starts as the identity.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, Natural, Positive
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.adapter import Adapter
from imbalance_vlm.heads.base import Head

PrototypeKind = Literal["auto", "simplex", "orthoplex", "optimised"]
"""The kinds of `balancing.prototypes.create_prototypes`, which this room comes before."""

PrototypeAssign = Literal["class_mean", "text", "none"]


class PrototypeHead(Head):
    """Fixed prototypes behind a trained map: (B, w) -> (B, C).

    Args:
        width: w.
        num_classes: C.
        directions: (C, w) unit rows, the prototype of class c in row c.
        assign: how prototypes come to their classes: matched to the classes' mean training features ("class_mean"), to
            the text features of their names ("text"), or in the order they happen to have ("none").
        kind: of the prototypes, as in `create_prototypes`; the directions are made from this, `assign` and the next.
        prototype_seed: of the rotation of the prototypes.
        map: "linear" (w x w, the identity at the start) or "adapter" (a residual bottleneck).
        adapter: hidden width of that bottleneck.
        normalise: cosines times `scale`; without it, dot products with embeddings of any length.
        scale: s; cosines lie in [-1, 1], too narrow for a softmax over many classes.

    Raises:
        InputError: no directions, or rows of another number or width.
    """

    prototypes: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        assign: PrototypeAssign = "class_mean",
        kind: PrototypeKind = "auto",
        prototype_seed: Natural = 0,
        map: Literal["linear", "adapter"] = "linear",
        adapter: Count = 64,
        normalise: bool = True,
        scale: Positive = 25.0,
    ) -> None:
        super().__init__()
        if directions is None or directions.shape != (num_classes, width):
            came = None if directions is None else tuple(directions.shape)
            raise InputError(
                f"`directions` must be prototypes of shape ({num_classes}, {width}), got {came}; make them with "
                f"prototypes_for({num_classes}, {width})"
            )
        self.register_buffer("prototypes", directions.detach().clone())  # (C, w): no parameter, so no decay either
        self.map = Adapter(width, adapter) if map == "adapter" else _identity(width)
        self.normalise = normalise
        self.scale = scale

    @property
    def learns_embedding(self) -> bool:
        return True

    def embed(self, features: Tensor) -> Tensor:
        """(B, w), of unit norm if `normalise`; the map reads features with entries of unit variance, as everywhere."""
        embeddings: Tensor = self.map(F.normalize(features, dim=-1) * features.shape[-1] ** 0.5)
        return F.normalize(embeddings, dim=-1) if self.normalise else embeddings

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return (self.scale * self.prototypes if self.normalise else self.prototypes), None

    def classify(self, embeddings: Tensor) -> Tensor:
        logits = embeddings @ self.prototypes.t()
        return self.scale * logits if self.normalise else logits


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
