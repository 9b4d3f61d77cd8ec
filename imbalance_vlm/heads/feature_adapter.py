"""A residual bottleneck before a classifier, so that a head on frozen features can learn an embedding.

[0] Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao. CLIP-Adapter: Better Vision-Language Models with Feature Adapters.
    IJCV 2024.

    f' = f + U relu(V f)

Differs from [0] in: the residual is added, not mixed by a ratio, and U starts at zero, so that training starts from
the features themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureAdapter(nn.Module):
    """Residual bottleneck, (B, w) -> (B, w); the identity at the start.

    Args:
        width: w.
        hidden: width of the bottleneck.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.up(torch.relu(self.down(features)))
        return features + change
