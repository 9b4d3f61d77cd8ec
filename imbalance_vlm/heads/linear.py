"""One affine layer on pooled features: the linear probe's classifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearHead(nn.Module):
    """z = W f + b, (B, w) -> (B, C).

    Args:
        width: width of the features.
        num_classes: C.
        directions: (C, w) unit rows to start W from, for the inits that have any.
        init: what W starts from: "random" (torch's default), "text" (the text features of the class names) or
            "class_mean" (the classes' mean training features); b starts at 0.
        bias: whether there is a b.
        normalise: scale the features to unit norm times sqrt(w), so that one learning rate fits every encoder.
    """

    reads = "pooled"

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        init: Literal["random", "text", "class_mean"] = "random",
        bias: bool = True,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(width, num_classes, bias=bias)
        self.normalise = normalise
        if bias:
            nn.init.zeros_(self.layer.bias)
        if directions is not None:
            with torch.no_grad():
                self.layer.weight.copy_(directions)

    def forward(self, features: Tensor) -> Tensor:
        if self.normalise:
            features = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5  # entries of unit variance
        logits: Tensor = self.layer(features)
        return logits
