"""Learning-rate schedules: the rate is a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from imbalance_vlm.components.ranges import NonNegative, Part, Positive
from imbalance_vlm.components.settings import SettingGroup

Schedule = Callable[[int, float], float]
"""(step, counted from 0 over the whole training; peak rate) -> rate of this step."""

Every = Literal["step", "epoch"]
"""How often the rate changes after the warm-up."""


@dataclass(frozen=True, kw_only=True)
class WarmUp(SettingGroup):
    """A warm-up, which replaces the first steps of a schedule.

    Args:
        warmup_epochs: length of the warm-up in epochs, which may be a fraction; 0 for none.
        warmup_lr: learning rate of the first step; of the whole warm-up where that is constant.
    """

    warmup_epochs: NonNegative = 0.0
    warmup_lr: NonNegative = 1e-5

    def steps(self, steps_per_epoch: int) -> int:
        """Length of the warm-up in steps."""
        return round(self.warmup_epochs * steps_per_epoch)

    def linear(self, schedule: Schedule, steps_per_epoch: int) -> Schedule:
        """The schedule after a rate that rises from `warmup_lr` towards the peak."""
        steps = self.steps(steps_per_epoch)

        def rate(step: int, peak: float) -> float:
            if step < steps:
                return self.warmup_lr + step * ((peak - self.warmup_lr) / steps)
            return schedule(step, peak)

        return rate

    def constant(self, schedule: Schedule, steps_per_epoch: int) -> Schedule:
        """The schedule after a constant rate of `warmup_lr`."""
        steps = self.steps(steps_per_epoch)
        return lambda step, peak: self.warmup_lr if step < steps else schedule(step, peak)


def cosine(
    epochs: int,
    steps_per_epoch: int,
    *,
    warm_up: WarmUp = WarmUp(),
    lr_min: NonNegative = 0.0,
    every: Every = "step",
) -> Schedule:
    """Half a cosine from the peak to `lr_min` over the whole training; the warm-up covers its beginning.

    Args:
        epochs: length of the training.
        steps_per_epoch: steps of the optimizer per epoch.
        warm_up: linear.
        lr_min: rate at the end.
        every: the rate changes at every "step", or stays constant within an "epoch", as in LIFT.
    """
    decay = _half_cosine(epochs * steps_per_epoch, lr_min)
    if every == "epoch":
        decay = _constant_within_epochs(decay, steps_per_epoch)
    return warm_up.linear(decay, steps_per_epoch)


def cosine_constant_warmup(
    epochs: int,
    steps_per_epoch: int,
    *,
    warm_up: WarmUp = WarmUp(warmup_epochs=1.0),
    lr_min: NonNegative = 0.0,
    every: Every = "epoch",
) -> Schedule:
    """`cosine` after a warm-up at one low rate, as in the prompt papers.

    By epochs, the rate is that of Dassl's ConstantWarmupScheduler, which CoOp and its successors use: the cosine begins
    at its peak after the warm-up, and training ends before it does. By steps, the warm-up covers its beginning.

    Args:
        epochs: length of the training.
        steps_per_epoch: steps of the optimizer per epoch.
        warm_up: constant.
        lr_min: rate at the end of the cosine.
        every: the rate changes at every "step", or stays constant within an "epoch".
    """
    decay = _half_cosine(epochs * steps_per_epoch, lr_min)
    if every == "epoch":
        decay = _constant_within_epochs(decay, steps_per_epoch, start=warm_up.steps(steps_per_epoch))
    return warm_up.constant(decay, steps_per_epoch)


def partial_cosine(
    epochs: int,
    steps_per_epoch: int,
    *,
    warm_up: WarmUp = WarmUp(warmup_lr=0.0),
    fraction: Part = 7 / 16,
) -> Schedule:
    """The rate after the warm-up is the peak times cos(pi * fraction * progress), as in FixMatch and Imbalance-VLM.

    With the default it ends at .195 of the peak.

    Args:
        epochs: length of the training.
        steps_per_epoch: steps of the optimizer per epoch.
        warm_up: linear.
        fraction: part of half a period that the training covers; at most .5, where the rate ends at 0.
    """
    total = epochs * steps_per_epoch
    start = min(warm_up.warmup_epochs * steps_per_epoch, total - 1)  # a training is not all warm-up
    warming = warm_up.linear(lambda step, peak: peak, steps_per_epoch)

    def rate(step: int, peak: float) -> float:
        if step < start:
            return warming(step, peak)
        return peak * max(0.0, math.cos(math.pi * fraction * (step - start) / (total - start)))

    return rate


def multistep(
    epochs: int,
    steps_per_epoch: int,
    *,
    milestones: list[int],
    factor: Positive = 0.1,
    warm_up: WarmUp = WarmUp(),
) -> Schedule:
    """The rate is multiplied by `factor` at the beginning of each epoch in `milestones`.

    Args:
        epochs: length of the training.
        steps_per_epoch: steps of the optimizer per epoch.
        milestones: epochs at whose beginning the rate drops, counted from 0.
        factor: factor on the learning rate at each milestone.
        warm_up: linear.
    """

    def rate(step: int, peak: float) -> float:
        drops = sum(step >= epoch * steps_per_epoch for epoch in milestones)
        return peak * factor**drops

    return warm_up.linear(rate, steps_per_epoch)


def constant(epochs: int, steps_per_epoch: int, *, warm_up: WarmUp = WarmUp()) -> Schedule:
    """The rate stays at its peak.

    Args:
        epochs: length of the training.
        steps_per_epoch: steps of the optimizer per epoch.
        warm_up: linear.
    """
    return warm_up.linear(lambda step, peak: peak, steps_per_epoch)


def _half_cosine(steps: int, lr_min: float) -> Schedule:
    return lambda step, peak: lr_min + 0.5 * (peak - lr_min) * (1 + math.cos(math.pi * step / steps))


def _constant_within_epochs(schedule: Schedule, steps_per_epoch: int, start: int = 0) -> Schedule:
    """`schedule`, begun at step `start` and read at the first step of each epoch after it."""
    return lambda step, peak: schedule((step - start) // steps_per_epoch * steps_per_epoch, peak)
