"""What every sampler must do: an order that depends on the seed and the epoch, and on nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from imbalance_vlm import catalogue
from imbalance_vlm.balancing.samplers.instance import epoch_generator

LABELS = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)


@pytest.fixture(params=catalogue.SAMPLERS.names())
def build(request: pytest.FixtureRequest) -> Any:
    return catalogue.SAMPLERS.get(request.param).load()


def test_gives_rows_of_the_training_set(build: Any) -> None:
    rows = build(LABELS, 0).epoch(0)
    assert rows.dtype == torch.int64
    assert rows.ndim == 1
    assert 0 <= int(rows.min()) <= int(rows.max()) < len(LABELS)


def test_the_same_seed_and_epoch_give_the_same_order(build: Any) -> None:
    torch.manual_seed(1)
    first = build(LABELS, 3).epoch(5)
    torch.manual_seed(2)  # the global generator plays no part
    assert torch.equal(first, build(LABELS, 3).epoch(5))


def test_another_seed_or_epoch_gives_another_order(build: Any) -> None:
    orders = {(seed, epoch): build(LABELS, seed).epoch(epoch) for seed in range(3) for epoch in range(3)}
    for (a, first), (b, second) in itertools.combinations(orders.items(), 2):
        assert not torch.equal(first, second), f"(seed, epoch) {a} and {b} share an order"


def test_a_set_of_one_image_has_an_order(build: Any) -> None:
    assert build(LABELS[:1], 0).epoch(0).tolist() == [0]


def test_instance_sampling_is_a_permutation() -> None:
    rows = catalogue.SAMPLERS.get("instance").load()(LABELS, 0).epoch(0)
    assert sorted(rows.tolist()) == list(range(len(LABELS)))


def test_large_seeds_and_epochs_have_streams_of_their_own() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (2**31, 0), (0, 2**31), (2**32 - 1, 0), (2**32 - 1, 7), (12345, 49)]
    assert len({int(torch.randint(2**62, (), generator=epoch_generator(*pair))) for pair in pairs}) == len(pairs)
