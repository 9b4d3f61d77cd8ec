"""A fixed classifier: one prototype per class, and features that learn to move to it.

[0] Yang, Chen, Li, Xie, Lin, Tao. Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a Learnable
    Classifier at the End of Deep Neural Network? NeurIPS 2022. (fixed simplex classifier, dot-regression loss)
[1] Li, Cao, Yuan, Fan, Yang, Feris, Indyk, Katabi. Targeted Supervised Contrastive Learning for Long-Tailed
    Recognition. CVPR 2022. (uniform targets for any number of classes, matched to the classes)

    e = A f + b, or f + U relu(V f)          P (C, w) unit rows, never trained
    z_c = s * cos(e, p_c)                    normalise
    z_c = e . p_c                            otherwise

Rare classes have as much room as frequent ones, since no gradient can move a prototype.

The dot-regression loss needs z = e . p: `normalise` with scale 1, or no `normalise`. On unit embeddings it converges to
the prototypes. On raw embeddings its gradient is parallel to the prototype: embeddings grow longer, their orthogonal
parts remain, and three classes stay far from the cosine of -.5 to one another that they reach on unit embeddings.

Differs from [0] in: there may be more than w + 1 prototypes, of any kind of `create_prototypes`; with frozen features
the map A takes the place of the backbone; it starts as the identity.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, Positive, Seed
from imbalance_vlm.heads.base import Head, check_rows
from imbalance_vlm.heads.feature_adapter import FeatureAdapter

PrototypeKind = Literal["auto", "simplex", "orthoplex", "optimised"]
"""The kinds of prototypes; see `imbalance_vlm.create_prototypes`."""

PrototypeAssign = Literal["class_mean", "text", "none"]
"""How prototypes are assigned to classes; see `PrototypeHead`."""


class PrototypeHead(Head):
    """Cosines or products of a trained map of the features with fixed prototypes: (B, w) -> (B, C).

    Args:
        width: w.
        num_classes: C.
        prototypes: (C, w) unit rows, the prototype of class c in row c.
        assign: how prototypes are assigned to classes: matched to the classes' mean training features ("class_mean"),
            to the text features of their names ("text"), or in arbitrary order ("none").
        kind: kind of prototypes, as in `create_prototypes`.
        prototype_seed: seed of the rotation of the prototypes.
        map: "linear" (w x w, the identity at the start) or "adapter" (a residual bottleneck).
        adapter: hidden width of the map "adapter".
        normalise: whether logits are cosines times `scale`; otherwise they are dot products with embeddings of any
            length.
        scale: scale s of the cosines, whose range [-1, 1] is too narrow for a softmax over many classes.

    Raises:
        InputError: prototypes of another shape.
    """

    prototypes: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        prototypes: Tensor,
        *,
        assign: PrototypeAssign = "class_mean",
        kind: PrototypeKind = "auto",
        prototype_seed: Seed = 0,
        map: Literal["linear", "adapter"] = "linear",
        adapter: Count = 64,
        normalise: bool = True,
        scale: Positive = 25.0,
    ) -> None:
        super().__init__()
        check_rows("prototypes", prototypes, num_classes, width)
        self.register_buffer("prototypes", prototypes.detach().clone())  # (C, w): a buffer, so that it does not decay
        self.map = FeatureAdapter(width, adapter) if map == "adapter" else _identity(width)
        self.normalise = normalise
        self.scale = scale
        self.logit_scale = float(scale) if normalise else None

    def embed(self, features: Tensor) -> Tensor:
        """(B, w) embeddings, of unit norm if `normalise`; the map reads features whose entries have unit variance."""
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
