"""Progressively balanced sampling."""

from __future__ import annotations

import torch

from imbalance_vlm import LongTail
from tests.balancing.samplers.shares import assert_within_sampling_error, group_shares, long_tail, sampler


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
