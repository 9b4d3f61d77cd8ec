"""One affine layer on pooled features: the linear probe's classifier."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Natural
from imbalance_vlm.heads.base import Head, linear_layer
from imbalance_vlm.heads.feature_adapter import FeatureAdapter


class LinearHead(Head):
    """z = W f + b, (B, w) -> (B, C).

    Args:
        width: width of the features.
        num_classes: C.
        directions: (C, w) unit rows to start W from; None for a random start.
        init: what W starts from: "random" (torch's default), "text" (the text features of the class names) or
            "class_mean" (the classes' mean training features); b starts at 0.
        bias: whether the classifier has a bias b.
        normalise: scale the features to unit norm times sqrt(w), so that one learning rate fits every encoder.
        adapter: hidden width of a residual bottleneck before the classifier; 0 for none.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        init: Literal["random", "text", "class_mean"] = "random",
        bias: bool = True,
        normalise: bool = True,
        adapter: Natural = 0,
    ) -> None:
        super().__init__()
        self.layer = linear_layer(width, num_classes, directions, bias)
        self.normalise = normalise
        self.adapter = FeatureAdapter(width, adapter) if adapter else None

    def embed(self, features: Tensor) -> Tensor:
        if self.normalise:
            features = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5  # entries of unit variance
        return features if self.adapter is None else self.adapter(features)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.layer.weight, self.layer.bias
