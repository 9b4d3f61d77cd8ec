"""The learning rate at each step, against closed formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from imbalance_vlm.components import catalogue

PEAK, EPOCHS, STEPS = 0.4, 10, 7


def rates(name: str, **settings: Any) -> list[float]:
    """The rate that each update of a training uses."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = catalogue.SCHEDULES.get(name).load()(optimizer, EPOCHS, STEPS, **settings)
    found = []
    for step in range(EPOCHS * STEPS):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def warm(step: int, epochs: float, start: float, after: Callable[[int], float]) -> float:
    length = round(epochs * STEPS)
    return start + step * (PEAK - start) / length if step < length else after(step)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("lowest", [0.0, 0.01])
def test_cosine(warmup: float, lowest: float) -> None:
    def cosine(step: int) -> float:
        return lowest + (PEAK - lowest) * (1 + math.cos(math.pi * step / (EPOCHS * STEPS))) / 2

    wanted = [warm(step, warmup, 1e-3, cosine) for step in range(EPOCHS * STEPS)]
    assert rates("cosine", warmup_epochs=warmup, warmup_lr=1e-3, lr_min=lowest) == pytest.approx(wanted)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
def test_held_cosine_stays_low_and_then_is_the_cosine(warmup: float) -> None:
    settings = {"warmup_epochs": warmup, "warmup_lr": 1e-3, "lr_min": 0.01}
    found, cosine = rates("held_cosine", **settings), rates("cosine", **settings)
    length = round(warmup * STEPS)
    assert found == pytest.approx([1e-3] * length + cosine[length:])


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_multistep_drops_at_the_beginning_of_each_milestone(warmup: float) -> None:
    def steps(step: int) -> float:
        return PEAK * 0.5 ** sum(step // STEPS >= milestone for milestone in (4, 8))

    wanted = [warm(step, warmup, 1e-3, steps) for step in range(EPOCHS * STEPS)]
    assert rates("multistep", milestones=[8, 4], factor=0.5, warmup_epochs=warmup, warmup_lr=1e-3) == pytest.approx(
        wanted
    )


def test_constant() -> None:
    assert rates("constant") == pytest.approx([PEAK] * EPOCHS * STEPS)
    assert rates("constant", warmup_epochs=1, warmup_lr=0.0)[: STEPS + 1] == pytest.approx(
        [PEAK * step / STEPS for step in range(STEPS)] + [PEAK]
    )


@pytest.mark.parametrize("name", catalogue.SCHEDULES.names())
def test_the_rate_is_a_function_of_the_step_alone(name: str) -> None:
    """A resumed run, which starts in the middle, uses the same rates."""
    settings: dict[str, Any] = {"warmup_epochs": 1.0} | ({"milestones": [3]} if name == "multistep" else {})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = catalogue.SCHEDULES.get(name).load()(optimizer, EPOCHS, STEPS, **settings)
    schedule.step_update(40)
    assert optimizer.param_groups[0]["lr"] == rates(name, **settings)[40]
