"""The learning rate at each step, against closed formulas and, to the last bit, against timm's schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

from imbalance_vlm.components import catalogue
from imbalance_vlm.training.loop import set_rates

PEAK, EPOCHS, STEPS = 0.4, 10, 7
TOTAL = EPOCHS * STEPS


def schedule(name: str, **settings: Any) -> Callable[[int, float], float]:
    offers: Any = {"epochs": lambda section: EPOCHS, "steps_per_epoch": lambda section: STEPS}
    rate: Callable[[int, float], float] = catalogue.SCHEDULES.make({"name": name} | settings, offers)
    return rate


def rates(name: str, peak: float = PEAK, **settings: Any) -> list[float]:
    """The rate of each step of a training."""
    rate = schedule(name, **settings)
    return [rate(step, peak) for step in range(TOTAL)]


def optimizer(peak: float = PEAK, **group: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], **group}], lr=peak)


def timm_rates(scheduler: Any, peak: float, *, constant_warmup: bool = False) -> list[float]:
    sgd = optimizer(peak)
    stepped = scheduler(sgd)
    if constant_warmup:  # timm has only a linear warm-up; here its steps add nothing
        stepped.warmup_steps = [0.0]
    rates_of_steps = []
    for step in range(TOTAL):
        stepped.step_update(step)
        rates_of_steps.append(sgd.param_groups[0]["lr"])
    return rates_of_steps


@pytest.mark.parametrize("peak", [0.4, 0.1, 0.002, 3e-5, 1.7])
@pytest.mark.parametrize("warmup", [0.0, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("warmup_lr", [0.0, 1e-5, 1e-3])
def test_rates_are_those_of_timm_to_the_last_bit(peak: float, warmup: float, warmup_lr: float) -> None:
    ours: dict[str, Any] = {"peak": peak, "warmup_epochs": warmup, "warmup_lr": warmup_lr}
    theirs: Any = {"warmup_t": round(warmup * STEPS), "warmup_lr_init": warmup_lr, "t_in_epochs": False}
    for lowest in (0.0, 1e-4):
        cosine = partial(CosineLRScheduler, t_initial=TOTAL, lr_min=lowest, **theirs)
        assert rates("cosine", lr_min=lowest, **ours) == timm_rates(cosine, peak)
        wanted = timm_rates(cosine, peak, constant_warmup=True)
        assert rates("cosine_constant_warmup", lr_min=lowest, every="step", **ours) == wanted
    for milestones, factor in (([], 0.1), ([3, 8], 0.1), ([1, 2, 9], 0.3)):
        multistep = partial(  # timm drops one step early
            MultiStepLRScheduler,
            decay_t=[epoch * STEPS + 1 for epoch in milestones],
            decay_rate=factor,
            warmup_prefix=False,
            **theirs,
        )
        wanted = timm_rates(multistep, peak)
        assert rates("multistep", milestones=milestones[::-1], factor=factor, **ours) == wanted
        if not milestones:
            assert rates("constant", **ours) == wanted


def after_warmup(step: int, epochs: float, start: float, rate: Callable[[int], float]) -> float:
    length = round(epochs * STEPS)
    return start + step * (PEAK - start) / length if step < length else rate(step)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("lowest", [0.0, 0.01])
def test_cosine_follows_its_formula(warmup: float, lowest: float) -> None:
    def cosine(step: int) -> float:
        return lowest + (PEAK - lowest) * (1 + math.cos(math.pi * step / TOTAL)) / 2

    wanted = [after_warmup(step, warmup, 1e-3, cosine) for step in range(TOTAL)]
    assert rates("cosine", warmup_epochs=warmup, warmup_lr=1e-3, lr_min=lowest) == pytest.approx(wanted)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
def test_cosine_with_constant_warmup_stays_low_and_then_is_the_cosine(warmup: float) -> None:
    settings = {"warmup_epochs": warmup, "warmup_lr": 1e-3, "lr_min": 0.01}
    cosine, length = rates("cosine", **settings), round(warmup * STEPS)
    assert rates("cosine_constant_warmup", every="step", **settings) == [1e-3] * length + cosine[length:]


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_rates_by_epoch_are_those_of_the_prompt_papers(warmup: int) -> None:
    """Constant within an epoch; the cosine starts after the warm-up, and its half period is all epochs."""
    epochs = [1e-5] * warmup + [PEAK * (1 + math.cos(math.pi * e / EPOCHS)) / 2 for e in range(EPOCHS - warmup)]
    wanted = [rate for rate in epochs for _ in range(STEPS)]
    assert rates("cosine_constant_warmup", warmup_epochs=warmup) == pytest.approx(wanted)


def test_cosine_by_epoch_is_that_of_torch() -> None:
    sgd = optimizer(PEAK)
    scheduler, wanted = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS), []
    for _ in range(EPOCHS):
        wanted += [sgd.param_groups[0]["lr"]] * STEPS
        sgd.step()
        scheduler.step()
    assert rates("cosine", every="epoch") == pytest.approx(wanted)


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("fraction", [7 / 16, 0.5, 0.75])
def test_partial_cosine_is_the_part_of_a_cosine_that_is_left_after_the_warmup(warmup: int, fraction: float) -> None:
    start = warmup * STEPS
    rising = [PEAK * step / start for step in range(start)]
    falling = [math.cos(math.pi * fraction * step / (TOTAL - start)) for step in range(TOTAL - start)]
    wanted = rising + [PEAK * max(0.0, value) for value in falling]
    assert rates("partial_cosine", warmup_epochs=warmup, fraction=fraction) == pytest.approx(wanted)


def test_partial_cosine_ends_at_a_fifth_of_the_peak() -> None:
    assert schedule("partial_cosine")(TOTAL, 1.0) == pytest.approx(0.195, abs=5e-4)


def test_constant_warmup_lasts_one_epoch_by_default() -> None:
    assert rates("cosine_constant_warmup")[: STEPS + 1].count(1e-5) == STEPS
    assert rates("cosine")[0] == PEAK


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_multistep_drops_at_the_beginning_of_each_milestone(warmup: float) -> None:
    def multistep(step: int) -> float:
        return PEAK * 0.5 ** sum(step // STEPS >= milestone for milestone in (4, 8))

    wanted = [after_warmup(step, warmup, 1e-3, multistep) for step in range(TOTAL)]
    got = rates("multistep", milestones=[8, 4], factor=0.5, warmup_epochs=warmup, warmup_lr=1e-3)
    assert got == pytest.approx(wanted)


def test_constant_stays_at_the_peak_after_its_warmup() -> None:
    assert rates("constant") == [PEAK] * TOTAL
    wanted = [PEAK * step / STEPS for step in range(STEPS)] + [PEAK]
    assert rates("constant", warmup_epochs=1, warmup_lr=0.0)[: STEPS + 1] == pytest.approx(wanted)


def test_scale_of_a_parameter_group_multiplies_its_rate() -> None:
    sgd = optimizer(initial_lr=PEAK, lr_scale=0.25)
    set_rates(sgd, schedule("cosine"), 20)
    assert sgd.param_groups[0]["lr"] == rates("cosine")[20] * 0.25
