"""What every schedule of the learning rate must do.

A contract takes `make(epochs, steps_per_epoch, **settings) -> schedule`, a function of (step, peak rate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.training.schedules import Schedule
from tests.contracts import Contract, Suite, noting, offers, over, section_of, variants

Make = Callable[..., Schedule]

EPOCHS, STEPS, PEAK = 8, 5, 4.0
"""The peak is above any rate that a setting has in these tests."""


def rates(make: Make, epochs: int = EPOCHS, steps: int = STEPS, peak: float = PEAK, **settings: Any) -> list[float]:
    """The rate of each step of a training."""
    schedule = make(epochs, steps, **settings)
    return [schedule(step, peak) for step in range(epochs * steps)]


def rates_are_numbers_up_to_the_peak(make: Make) -> None:
    """Finite floats in [0, peak], at trainings of any length, also of one step; not all of them 0."""
    for epochs, steps in ((EPOCHS, STEPS), (1, 1), (1, 40), (40, 1)):
        for rate in (of_training := rates(make, epochs, steps)):
            assert type(rate) is float, f"a rate must be a float, got {type(rate).__name__}"
            assert math.isfinite(rate), f"a rate of {epochs} epochs of {steps} steps is {rate}"
            assert 0 <= rate <= PEAK * (1 + 1e-12), f"a rate must lie in [0, {PEAK}], the peak, got {rate}"
        assert max(of_training) > 0, f"nothing is learned in {epochs} epochs of {steps} steps"


def rate_is_a_function_of_the_step(make: Make) -> None:
    """A resumed run, which starts in the middle, has the same rates; asking twice changes nothing."""
    wanted = rates(make)
    schedule = make(EPOCHS, STEPS)
    for step in (27, 3, 3, 0, 39, 27):
        assert schedule(step, PEAK) == wanted[step], f"the rate of step {step} depends on the steps asked for before it"


def epochs_begin_alike_at_any_batch_size(make: Make) -> None:
    """The first step of an epoch has the same rate, whatever the number of steps per epoch."""
    few, many = rates(make, steps=3)[::3], rates(make, steps=17)[::17]
    same = all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(few, many, strict=True))
    assert same, f"rates of the epochs' first steps are {few} at 3 and {many} at 17 steps per epoch"


def groups_do_not_share_anything(make: Make) -> None:
    """One schedule serves parameter groups of several peaks, each as if alone."""
    schedule = make(EPOCHS, STEPS)
    both = [(schedule(step, PEAK), schedule(step, PEAK / 10)) for step in range(EPOCHS * STEPS)]
    assert [high for high, _ in both] == rates(make), "the rate of a group depends on another group"
    assert [low for _, low in both] == rates(make, peak=PEAK / 10), "the rate of a group depends on another group"
    assert all(low <= high for high, low in both), "a lower peak gives a higher rate"


def warm_up_covers_the_beginning(make: Make) -> None:
    """With `warmup_epochs`, the first epochs have lower rates; then rates are those without a warm-up, or fall from the
    peak."""
    plain, warmed = rates(make, warmup_epochs=0.0), rates(make, warmup_epochs=2.0, warmup_lr=1e-4)
    begin = 2 * STEPS
    after = warmed[begin:]
    falls_from_the_peak = after[0] == plain[0] and after == sorted(after, reverse=True)
    assert after == plain[begin:] or falls_from_the_peak, "the warm-up changes the rates after it"
    assert warmed[0] == 1e-4, f"the first rate must be that of the warm-up, 0.0001, got {warmed[0]}"
    assert max(warmed[:begin]) < PEAK, "the warm-up reaches the peak before its end"


CONTRACTS = (
    rates_are_numbers_up_to_the_peak,
    rate_is_a_function_of_the_step,
    epochs_begin_alike_at_any_batch_size,
    groups_do_not_share_anything,
    warm_up_covers_the_beginning,
)


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    def make(epochs: int, steps_per_epoch: int, **changes: Any) -> Schedule:
        run = offers(epochs=epochs, steps_per_epoch=steps_per_epoch)
        schedule: Schedule = entry.make(section_of(entry, **{**settings, **changes}), run)
        return schedule

    return make


@over(catalogue.SCHEDULES, CONTRACTS)
def test_every_schedule_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.SCHEDULES.get(name)
    if contract is warm_up_covers_the_beginning and "warmup_epochs" not in entry.settings():
        pytest.skip("has no warm-up")
    for settings in variants(entry, lambda entry, settings: maker(entry, settings)(EPOCHS, STEPS)):
        with noting(settings):
            contract(maker(entry, settings))


# -- schedules that are wrong on purpose -----------------------------------------------------------------------------


def sound(epochs: int, steps_per_epoch: int, warmup_epochs: float = 0.0, warmup_lr: float = 1e-5) -> Schedule:
    """A rate that falls along a line, which breaks no contract."""

    def rate(step: int, peak: float) -> float:
        return warmup_lr if step < warmup_epochs * steps_per_epoch else peak * (1 - step / (epochs * steps_per_epoch))

    return rate


def overshoots(epochs: int, steps_per_epoch: int, **settings: Any) -> Schedule:
    schedule = sound(epochs, steps_per_epoch, **settings)
    return lambda step, peak: 1.5 * schedule(step, peak)


def counts_its_calls(epochs: int, steps_per_epoch: int, **settings: Any) -> Schedule:
    schedule, calls = sound(epochs, steps_per_epoch, **settings), iter(range(10**6))
    return lambda step, peak: schedule(next(calls) % (epochs * steps_per_epoch), peak)


def falls_by_the_step(epochs: int, steps_per_epoch: int, **settings: Any) -> Schedule:
    schedule = sound(epochs, steps_per_epoch, **settings)
    return lambda step, peak: schedule(step, peak) * 0.99**step


def remembers_its_first_peak(epochs: int, steps_per_epoch: int, **settings: Any) -> Schedule:
    schedule, peaks = sound(epochs, steps_per_epoch, **settings), []

    def rate(step: int, peak: float) -> float:
        peaks.append(peak)
        return schedule(step, peaks[0])

    return rate


def skips_as_much_as_its_warm_up(
    epochs: int, steps_per_epoch: int, warmup_epochs: float = 0.0, **settings: Any
) -> Schedule:
    schedule, begin = sound(epochs, steps_per_epoch), round(warmup_epochs * steps_per_epoch)
    return lambda step, peak: settings["warmup_lr"] if step < begin else schedule(step + begin, peak)


BAD: dict[Make, Contract] = {
    overshoots: rates_are_numbers_up_to_the_peak,
    counts_its_calls: rate_is_a_function_of_the_step,
    falls_by_the_step: epochs_begin_alike_at_any_batch_size,
    remembers_its_first_peak: groups_do_not_share_anything,
    skips_as_much_as_its_warm_up: warm_up_covers_the_beginning,
}

SUITE = Suite(CONTRACTS, BAD, (sound,))
