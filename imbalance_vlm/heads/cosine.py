"""Scaled cosine classifier.

[0] Shi, Wei, Zhou, Shao, Han, Li. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
    (text-initialised cosine head, scale 25)

    z_c = s * cos(f, w_c)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Natural, Positive
from imbalance_vlm.heads.base import Head, check_rows
from imbalance_vlm.heads.feature_adapter import FeatureAdapter


class CosineHead(Head):
    """Cosine to one direction per class, times a scale: (B, w) -> (B, C).

    Args:
        width: width of the features.
        num_classes: C.
        directions: (C, w) unit rows to start from; None for a random start.
        init: what the directions start from: "text" (the text features of the class names), "class_mean" (the classes'
            mean training features) or "random".
        scale: scale s of the cosines, whose range [-1, 1] is too narrow for a softmax over many classes.
        learn_scale: whether the scale is trained too (its logarithm, so that it stays positive).
        adapter: hidden width of a residual bottleneck before the cosines; 0 for none.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        init: Literal["text", "class_mean", "random"] = "text",
        scale: Positive = 25.0,
        learn_scale: bool = False,
        adapter: Natural = 0,
    ) -> None:
        super().__init__()
        if directions is None:
            directions = F.normalize(torch.randn(num_classes, width), dim=-1)
        check_rows("directions", directions, num_classes, width)
        self.weight = nn.Parameter(directions.detach().clone())  # (C, w)
        self.logit_scale = None if learn_scale else float(scale)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log(), requires_grad=learn_scale)
        self.adapter = FeatureAdapter(width, adapter) if adapter else None

    def embed(self, features: Tensor) -> Tensor:
        """(B, w) unit embeddings; the adapter reads features whose entries have unit variance."""
        if self.adapter is not None:
            features = self.adapter(F.normalize(features, dim=-1) * features.shape[-1] ** 0.5)
        return F.normalize(features, dim=-1)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.log_scale.exp() * F.normalize(self.weight, dim=-1), None

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.log_scale.exp() * embeddings @ F.normalize(self.weight, dim=-1).t()
