"""Progressively balanced sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbalance_vlm import LongTail
from imbalance_vlm.components import catalogue


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


def assert_within_sampling_error(got: Sequence[float], wanted: Sequence[float], draws: int) -> None:
    for share, right in zip(got, wanted, strict=True):
        assert abs(share - right) < 4 * (right * (1 - right) / draws) ** 0.5, f"drew {list(got)}, not {list(wanted)}"


def test_progressive_goes_from_instance_balanced_to_class_balanced() -> None:
    counts = long_tail()
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    groups = LongTail(counts).groups
    order, epochs = sampler("progressive", labels), 5
    for epoch in range(epochs):
        t = epoch / (epochs - 1)
        wanted = [
            sum((1 - t) * counts[c] / sum(counts) + t / len(counts) for c in groups[group])
            for group in ("many", "medium", "few")
        ]
        got = group_shares(labels[order.epoch(epoch, epochs)], counts)
        assert_within_sampling_error(got, wanted, len(labels))
    natural = group_shares(labels, counts)
    assert_within_sampling_error(group_shares(labels[order.epoch(0, 1)], counts), natural, len(labels))
