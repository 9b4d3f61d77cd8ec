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

from imbalance_vlm.types import Positive


class CosineHead(nn.Module):
    """Cosine to one direction a class, times a scale: (B, w) -> (B, C).

    Args:
        width: width of the features.
        num_classes: C.
        directions: (C, w) unit rows to start from, for the inits that have any.
        init: "text" (the text features of the class names), "class_mean" (the classes' mean training features) or
            "random".
        scale: s; cosines lie in [-1, 1], too narrow for a softmax over many classes.
        learn_scale: train s too (its logarithm, so that it stays positive).
    """

    reads = "pooled"

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        init: Literal["text", "class_mean", "random"] = "text",
        scale: Positive = 25.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        start = F.normalize(torch.randn(num_classes, width), dim=-1) if directions is None else directions
        self.weight = nn.Parameter(start.detach().clone())  # (C, w)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log(), requires_grad=learn_scale)

    def forward(self, features: Tensor) -> Tensor:
        return self.log_scale.exp() * F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=-1).t()
