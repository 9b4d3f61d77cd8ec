"""Every sampler: its order depends on seed and epoch only, and classes have the shares of its equation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.samplers.base import epoch_generator
from imbalance_vlm.components import catalogue

LABELS = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
PLACES_LT = Path(__file__).resolve().parents[4] / "shared" / "lists" / "Places_LT_train.txt"


def sampler(name: str, labels: Tensor, seed: int = 0, **settings: Any) -> Any:
    return catalogue.SAMPLERS.get(name).load()(labels, seed, **settings)


@pytest.fixture(params=catalogue.SAMPLERS.names())
def build(request: pytest.FixtureRequest) -> Any:
    return catalogue.SAMPLERS.get(request.param).load()


# -- every sampler ---------------------------------------------------------------------------------------------------


def test_epoch_has_as_many_rows_as_training_images(build: Any) -> None:
    for size in (1, 2, 3, 5, 49, 50):  # also fewer images than a batch or than classes
        rows = build(LABELS[:size], 0).epoch(0, 3)
        assert rows.dtype == torch.int64
        assert rows.shape == (size,)
        assert 0 <= int(rows.min()) <= int(rows.max()) < size
        assert len(rows.split(512)) == 1  # one small batch, not none


def test_same_seed_and_epoch_give_the_same_order(build: Any) -> None:
    torch.manual_seed(1)
    advanced = build(LABELS, 3)
    for epoch in range(6):
        first = advanced.epoch(epoch, 9)
    torch.manual_seed(2)  # neither the global generator nor earlier epochs matter
    assert torch.equal(first, build(LABELS, 3).epoch(5, 9))


def test_another_seed_or_epoch_gives_another_order(build: Any) -> None:
    orders = {(seed, epoch): build(LABELS, seed).epoch(epoch, 3) for seed in range(3) for epoch in range(3)}
    for (a, first), (b, second) in itertools.combinations(orders.items(), 2):
        assert not torch.equal(first, second), f"(seed, epoch) {a} and {b} share an order"


def test_single_image_is_accepted(build: Any) -> None:
    assert build(LABELS[:1], 0).epoch(0, 1).tolist() == [0]


def test_class_without_images_is_skipped(build: Any) -> None:
    """The labels 0, 3 and 7 of a training set with more classes: the rows are those of the labels 0, 1 and 2."""
    spread = torch.tensor([0, 3, 7])[LABELS]
    assert torch.equal(build(spread, 1).epoch(1, 4), build(LABELS, 1).epoch(1, 4))


def test_images_of_a_class_are_drawn_equally_often(build: Any) -> None:
    order = build(LABELS, 0)
    drawn = torch.cat([order.epoch(epoch, 400) for epoch in range(400)])
    times = torch.bincount(drawn, minlength=len(LABELS)).double()
    for label in range(3):
        own = times[label == LABELS]
        spread = 5 * own.mean().sqrt()
        assert own.min() > own.mean() - spread, f"class {label}: an image came up {own.min()} times, mean {own.mean()}"
        assert own.max() < own.mean() + spread, f"class {label}: an image came up {own.max()} times, mean {own.mean()}"


# -- one sampler each ------------------------------------------------------------------------------------------------


def test_instance_sampling_is_a_permutation() -> None:
    assert sorted(sampler("instance", LABELS).epoch(0, 1).tolist()) == list(range(len(LABELS)))


def long_tail(classes: int = 365, largest: int = 4980, smallest: int = 5) -> list[int]:
    """Exponentially decreasing counts, with Places-LT's number of classes and extremes."""
    return [round(largest * (smallest / largest) ** (c / (classes - 1))) for c in range(classes)]


def wanted_shares(counts: Sequence[int], power: float) -> list[float]:
    """n^q over the sum of n^q."""
    return [n**power / sum(m**power for m in counts) for n in counts]


def group_shares(labels: Tensor, counts: Sequence[int]) -> list[float]:
    """Shares of many, medium and few among the labels."""
    groups = LongTail(counts).groups
    times = np.bincount(labels.numpy(), minlength=len(counts))
    return [float(times[groups[group]].sum() / times.sum()) for group in ("many", "medium", "few")]


def assert_within_sampling_error(got: Sequence[float], wanted: Sequence[float], draws: int) -> None:
    for share, right in zip(got, wanted, strict=True):
        assert abs(share - right) < 4 * (right * (1 - right) / draws) ** 0.5, f"drew {list(got)}, not {list(wanted)}"


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


def test_class_aware_takes_the_classes_in_turn_k_images_each() -> None:
    for k in (1, 3, 4):
        order = sampler("class_aware", LABELS, k=k)
        turns = LABELS[order.epoch(0, 1)].split(k)
        assert all(len(turn.unique()) == 1 for turn in turns)
        visits = [int(turn[0]) for turn in turns]
        for begin in range(0, len(visits) - 2, 3):  # each pass visits each class once
            assert sorted(visits[begin : begin + 3]) == [0, 1, 2]
        assert len({tuple(visits[begin : begin + 3]) for begin in range(0, len(visits) - 2, 3)}) > 1


def test_class_aware_repeats_no_image_before_all_were_shown() -> None:
    order = sampler("class_aware", LABELS, k=4)
    rows = order.epoch(0, 1)
    for label in range(3):
        own = rows[LABELS[rows] == label]
        size = int((label == LABELS).sum())
        for begin in range(0, len(own), size):
            one_round = own[begin : begin + size]
            assert len(one_round.unique()) == len(one_round)


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


def test_large_seeds_and_epochs_have_different_streams() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (2**31, 0), (0, 2**31), (2**32 - 1, 0), (2**32 - 1, 7), (12345, 49)]
    assert len({int(torch.randint(2**62, (), generator=epoch_generator(*pair))) for pair in pairs}) == len(pairs)
