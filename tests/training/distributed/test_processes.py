"""Connecting the processes of a run, their parts of a batch, and sharding, as far as one process can show."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from imbalance_vlm import InputError, launcher
from imbalance_vlm.training.distributed.collectives import local_rows
from imbalance_vlm.training.distributed.processes import ProcessGroup, join, process_group
from imbalance_vlm.training.distributed.random_state import LocalRandom, random_state, set_random_state
from imbalance_vlm.training.distributed.sharding import shard_tower


def test_single_process_joins_nothing() -> None:
    assert join("auto") is None
    assert process_group() == ProcessGroup(0, 1)
    assert process_group().broadcast("value") == "value"
    assert process_group().collect("value") == ["value"]


def test_single_process_does_not_shard() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    before = copy.deepcopy(module.state_dict())
    shard_tower(module)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="`device` must be auto, cuda or cpu for 2 processes.*'cuda:1'"):
        join("cuda:1")


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_SIZE": "8",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
    ],
)
def test_place_among_the_processes_is_read_from_the_launcher(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def place() -> tuple[int, ...]:
        return launcher.rank(), launcher.world_size(), launcher.local_rank(), launcher.local_world_size()

    assert place() == (0, 1, 0, 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place() == (3, 8, 1, 2)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_parts_of_a_batch_make_up_the_batch(count: int) -> None:
    rows = torch.arange(count) + 10
    parts = [local_rows(rows, ProcessGroup(rank, 3)) for rank in range(3)]
    assert torch.cat(parts).tolist() == rows.tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_process_without_rows_of_a_small_batch_gets_the_first(count: int) -> None:
    rows = torch.arange(count) + 10
    parts = [local_rows(rows, ProcessGroup(rank, 3)).tolist() for rank in range(3)]
    assert parts == [[10], [11] if count == 2 else [10], [10]]


def test_each_process_draws_its_own_numbers() -> None:
    shared = torch.get_rng_state()
    draws = []
    for rank in range(2):
        with LocalRandom(rank).use():
            draws.append(torch.rand(4))
    assert not torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), shared)


def test_local_stream_continues_where_it_stopped() -> None:
    stream, reference = LocalRandom(1), LocalRandom(1)
    with reference.use():
        wanted = torch.rand(6)
    draws = []
    for _ in range(2):
        with stream.use():
            draws.append(torch.rand(3))
        torch.rand(5)
    assert torch.equal(torch.cat(draws), wanted)


def test_random_state_is_restored(tmp_path: Any) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]

    torch.save(random_state(), tmp_path / "state.pt")
    first = draw()
    assert draw() != first
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first
