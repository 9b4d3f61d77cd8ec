"""Instance-balanced sampling."""

from __future__ import annotations

from tests.balancing.samplers.shares import LABELS, sampler


def test_instance_sampling_is_a_permutation() -> None:
    assert sorted(sampler("instance", LABELS).epoch(0, 1).tolist()) == list(range(len(LABELS)))
