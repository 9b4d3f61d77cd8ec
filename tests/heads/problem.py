"""Directions and features, on which the tests make heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH, CLASSES, BATCH, TOKENS = 8, 5, 6, 4


def directions(seed: int = 0) -> Tensor:
    """(C, w) unit rows."""
    return F.normalize(torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def features() -> Tensor:
    """(B, w) features."""
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    """(B, T, w) tokens."""
    return torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
