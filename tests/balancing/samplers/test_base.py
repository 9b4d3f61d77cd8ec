"""Streams of random numbers, and shares of the classes against their equations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.samplers.base import epoch_generator
from tests.balancing.samplers.shares import assert_within_sampling_error, group_shares, long_tail, sampler

PLACES_LT = Path(__file__).resolve().parents[4] / "shared" / "lists" / "Places_LT_train.txt"


def wanted_shares(counts: Sequence[int], power: float) -> list[float]:
    """n^q over the sum of n^q."""
    return [n**power / sum(m**power for m in counts) for n in counts]


@pytest.mark.parametrize(("name", "power"), [("class_balanced", 0.0), ("sqrt", 0.5)])
def test_shares_are_those_of_the_equation(name: str, power: float) -> None:
    counts = long_tail()
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels))]
    rows = sampler(name, labels).epoch(0, 1)
    classes, groups = wanted_shares(counts, power), LongTail(counts).groups
    wanted = [sum(classes[c] for c in groups[group]) for group in ("many", "medium", "few")]
    assert_within_sampling_error(group_shares(labels[rows], counts), wanted, len(rows))
    natural = group_shares(labels, counts)
    with pytest.raises(AssertionError):  # what drawing without replacement would give
        assert_within_sampling_error(natural, wanted, len(rows))
    assert len(rows.unique()) < len(rows)


@pytest.mark.skipif(not PLACES_LT.exists(), reason=f"needs the list of Places-LT at {PLACES_LT}")
def test_shares_on_places_lt() -> None:
    lines = PLACES_LT.read_text(encoding="utf-8").splitlines()
    labels = torch.tensor([int(line.rsplit(maxsplit=1)[1]) for line in lines])
    counts = torch.bincount(labels).tolist()
    assert (len(counts), len(labels), max(counts), min(counts)) == (365, 62500, 4980, 5)
    balanced = labels[sampler("class_balanced", labels).epoch(0, 1)]
    assert_within_sampling_error(group_shares(balanced, counts), [131 / 365, 163 / 365, 71 / 365], len(labels))
    aware = labels[sampler("class_aware", labels).epoch(0, 1)]
    assert group_shares(aware, counts) == pytest.approx([0.359, 0.447, 0.195], abs=0.002)
    classes, groups = wanted_shares(counts, 0.5), LongTail(counts).groups
    root = [sum(classes[c] for c in groups[group]) for group in ("many", "medium", "few")]
    drawn = labels[sampler("sqrt", labels).epoch(0, 1)]
    assert_within_sampling_error(group_shares(drawn, counts), root, len(labels))


def test_large_seeds_and_epochs_have_different_streams() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (2**31, 0), (0, 2**31), (2**32 - 1, 0), (2**32 - 1, 7), (12345, 49)]
    assert len({int(torch.randint(2**62, (), generator=epoch_generator(*pair))) for pair in pairs}) == len(pairs)
