"""Samplers by name, labels with a long tail, and their shares of many, medium and few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbalance_vlm import LongTail
from imbalance_vlm.components import catalogue

LABELS = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]


def sampler(name: str, labels: Tensor, seed: int = 0, **settings: Any) -> Any:
    return catalogue.SAMPLERS.get(name).load()(labels, seed, **settings)


def long_tail(classes: int = 365, largest: int = 4980, smallest: int = 5) -> list[int]:
    """Exponentially decreasing counts, with Places-LT's number of classes and extremes."""
    return [round(largest * (smallest / largest) ** (c / (classes - 1))) for c in range(classes)]


def group_shares(labels: Tensor, counts: Sequence[int]) -> list[float]:
    """Shares of many, medium and few among the labels."""
    groups = LongTail(counts).groups
    times = np.bincount(labels.numpy(), minlength=len(counts))
    return [float(times[groups[group]].sum() / times.sum()) for group in ("many", "medium", "few")]


def assert_within_sampling_error(shares: Sequence[float], expected: Sequence[float], draws: int) -> None:
    for share, right in zip(shares, expected, strict=True):
        message = f"drew {list(shares)}, not {list(expected)}"
        assert abs(share - right) < 4 * (right * (1 - right) / draws) ** 0.5, message
