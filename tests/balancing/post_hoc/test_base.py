"""Every post-hoc correction: its equation in plain loops, the choice on validation, and what all have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.balancing.post_hoc.logit_adjustment import LogitAdjustment
from imbalance_vlm.balancing.post_hoc.prior_shift import PriorShift
from imbalance_vlm.balancing.post_hoc.temperature import Temperature
from imbalance_vlm.balancing.selection import class_mean_accuracy
from imbalance_vlm.components.settings import checked_settings, settings_of
from tests.balancing.post_hoc.problem import (
    COUNTS,
    INVERSE,
    LIST,
    TAIL,
    TRAIN,
    UNIFORM,
    C,
    Untouched,
    oracle_logit_adjustment,
    oracle_prior_shift,
    oracle_temperature,
    tailed,
)

Make = Callable[[LongTail], PostHoc]

CASES: dict[str, tuple[Make, Callable[[list[list[float]]], list[list[float]]]]] = {
    "logit_adjustment tau 1": (
        lambda tail: LogitAdjustment(tail, tau=1.0),
        lambda rows: oracle_logit_adjustment(rows, 1.0),
    ),
    "logit_adjustment tau .7": (
        lambda tail: LogitAdjustment(tail, tau=0.7),
        lambda rows: oracle_logit_adjustment(rows, 0.7),
    ),
    "prior_shift to uniform": (PriorShift, lambda rows: oracle_prior_shift(rows, UNIFORM, TRAIN)),
    "prior_shift to inverse": (
        lambda tail: PriorShift(tail, target="inverse"),
        lambda rows: oracle_prior_shift(rows, INVERSE, TRAIN),
    ),
    "prior_shift from uniform to train": (
        lambda tail: PriorShift(tail, target="train", source="uniform"),
        lambda rows: oracle_prior_shift(rows, TRAIN, UNIFORM),
    ),
    "prior_shift to a list, strength .4": (
        lambda tail: PriorShift(tail, target=LIST, strength=0.4),
        lambda rows: oracle_prior_shift(rows, LIST, TRAIN, 0.4),
    ),
    "temperature 1.7": (lambda tail: Temperature(tail, T=1.7), lambda rows: oracle_temperature(rows, 1.7)),
}


def assert_follows(make: Make, oracle: Callable[[list[list[float]]], list[list[float]]]) -> None:
    logits, _ = tailed(12)
    got = make(TAIL)(logits).softmax(1)
    np.testing.assert_allclose(got.numpy(), oracle(logits.tolist()), rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_follows_its_equation(case: str) -> None:
    assert_follows(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_oracle_rejects_unchanged_logits(case: str) -> None:
    with pytest.raises(AssertionError):
        assert_follows(Untouched, CASES[case][1])


def test_adjustment_is_the_shift_from_the_training_to_a_uniform_prior() -> None:
    logits, _ = tailed()
    adjusted, shifted = LogitAdjustment(TAIL, tau=0.6)(logits), PriorShift(TAIL, strength=0.6)(logits)
    torch.testing.assert_close(adjusted.log_softmax(1), shifted.log_softmax(1))


@pytest.mark.parametrize(
    "correction",
    [
        LogitAdjustment(TAIL, tau=0.0),
        PriorShift(TAIL, strength=0.0),
        PriorShift(TAIL, target="train"),
        PriorShift(TAIL, target=[float(n) for n in COUNTS]),
        PriorShift(TAIL, source="uniform"),
        Temperature(TAIL, T=1.0),
        Temperature(TAIL),
    ],
)
def test_settings_without_effect_keep_the_probabilities(correction: PostHoc) -> None:
    logits, _ = tailed()
    torch.testing.assert_close(correction(logits).softmax(1), logits.softmax(1))


# -- choosing on the validation set ----------------------------------------------------------------------------------


def by_hand(logits: Tensor, labels: Tensor, probabilities: Callable[[float], list[list[float]]]) -> float:
    """The candidate of 0, .1, .. 2 with the highest class-mean accuracy, of ties the first, in loops."""
    best, chosen = -1.0, math.nan
    for k in range(21):
        rows = probabilities(k / 10)
        accuracies = []
        for label in range(C):
            members = [row for row, y in zip(rows, labels.tolist(), strict=True) if y == label]
            accuracies.append(sum(row.index(max(row)) == label for row in members) / len(members))
        if sum(accuracies) > best:
            best, chosen = sum(accuracies), k / 10
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_open_strength_is_the_best_of_the_grid(seed: int) -> None:
    logits, labels = tailed(300, seed=seed)
    rows = logits.tolist()
    adjustment = LogitAdjustment(TAIL)
    assert adjustment.needs_validation
    wanted = by_hand(logits, labels, lambda t: oracle_logit_adjustment(rows, t))
    assert adjustment.fit(logits, labels) == {"tau": wanted}
    assert adjustment.fit(logits, labels)["tau"] > 0
    shift = PriorShift(TAIL, target="inverse", strength=None)
    assert shift.needs_validation
    wanted = by_hand(logits, labels, lambda s: oracle_prior_shift(rows, INVERSE, TRAIN, s))
    assert shift.fit(logits, labels) == {"strength": wanted}
    before = class_mean_accuracy(logits, labels)
    assert class_mean_accuracy(adjustment(logits), labels) > before + 5
    assert class_mean_accuracy(shift(logits), labels) > before + 5


def test_smallest_of_ties_is_chosen() -> None:
    logits = torch.full((C, C), -1e4).fill_diagonal_(1e4)  # right whatever is added
    assert LogitAdjustment(TAIL).fit(logits, torch.arange(C)) == {"tau": 0.0}
    assert PriorShift(TAIL, strength=None).fit(logits, torch.arange(C)) == {"strength": 0.0}


def test_chosen_strength_is_applied() -> None:
    logits, labels = tailed()
    correction = LogitAdjustment(TAIL)
    torch.testing.assert_close(correction(logits), LogitAdjustment(TAIL, tau=1.0)(logits))  # before `fit`: the paper's
    tau = correction.fit(logits, labels)["tau"]
    torch.testing.assert_close(correction(logits), LogitAdjustment(TAIL, tau=tau)(logits))


def test_fixed_settings_need_no_validation_set() -> None:
    for correction in (
        LogitAdjustment(TAIL, tau=1.0),
        PriorShift(TAIL),
        PriorShift(TAIL, target=LIST),
        Temperature(TAIL, T=2),
    ):
        assert not correction.needs_validation
        assert correction.fit(None, None) == {}


@pytest.mark.parametrize(
    ("correction", "word"),
    [
        (LogitAdjustment(TAIL), "`tau`"),
        (PriorShift(TAIL, strength=None), "`strength`"),
        (PriorShift(TAIL, target="estimate"), "`target`"),
        (Temperature(TAIL), "`T`"),
    ],
)
def test_choice_without_a_validation_set_is_refused(correction: PostHoc, word: str) -> None:
    assert correction.needs_validation
    with pytest.raises(InputError, match=word):
        correction.fit(None, None)


# -- what every correction does --------------------------------------------------------------------------------------

ALL: dict[str, Make] = {
    "logit_adjustment": LogitAdjustment,
    "logit_adjustment fixed": lambda tail: LogitAdjustment(tail, tau=0.7),
    "prior_shift": PriorShift,
    "prior_shift open": lambda tail: PriorShift(tail, target="inverse", strength=None),
    "prior_shift estimate": lambda tail: PriorShift(tail, target="estimate", strength=None),
    "temperature": Temperature,
    "temperature by group": lambda tail: Temperature(tail, per_group=True),
}


def fitted(make: Make, tail: LongTail = TAIL) -> PostHoc:
    correction = make(tail)
    correction.fit(*tailed())
    return correction


@pytest.mark.parametrize("name", ALL)
def test_no_matrix_of_classes_by_classes(name: str, products: list[int]) -> None:
    correction = fitted(ALL[name])
    correction(tailed(3)[0])
    assert max(products, default=0) <= 200  # the estimate's two products with a vector
    assert all(value.numel() <= C for value in correction.state_dict().values())


@pytest.mark.parametrize("name", [name for name in ALL if "temperature" not in name])
def test_class_without_images_is_never_predicted_and_changes_nothing_else(name: str) -> None:
    counts = (500, 0, 60, 19, 3)
    present = [0, 2, 3, 4]
    logits, labels = tailed()
    keep = labels != 1
    with_it = ALL[name](LongTail(counts, allow_empty=True))
    chosen = with_it.fit(logits[keep], labels[keep])
    got = with_it(logits)
    assert torch.isneginf(got[:, 1]).all()
    without = ALL[name](LongTail([counts[c] for c in present]))
    wanted = without.fit(logits[keep][:, present], torch.tensor([0, 9, 1, 2, 3])[labels[keep]])
    assert chosen == pytest.approx(wanted)
    torch.testing.assert_close(got[:, present].log_softmax(1), without(logits[:, present]).log_softmax(1))
    (grad,) = torch.autograd.grad(with_it(logits.requires_grad_())[:, present].sum(), logits)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    "correction",
    [
        LogitAdjustment(LongTail([9, 0, 2], allow_empty=True), tau=0.0),
        PriorShift(LongTail([9, 0, 2], allow_empty=True), strength=0.0),
        PriorShift(LongTail([9, 0, 2], allow_empty=True), target=[1.0, 8.0, 1.0], source="uniform"),
    ],
)
def test_class_without_images_is_never_predicted_whatever_the_settings(correction: PostHoc) -> None:
    assert torch.isneginf(correction(torch.zeros(2, 3)))[:, 1].all()
    assert torch.isfinite(correction(torch.zeros(2, 3)))[:, [0, 2]].all()


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (LogitAdjustment, {"tau": -0.1}),
        (PriorShift, {"strength": -1}),
        (PriorShift, {"source": "inverse"}),
        (PriorShift, {"target": "even"}),
        (PriorShift, {"iterations": 0}),
        (Temperature, {"T": 0.0}),
        (Temperature, {"temperature": 2.0}),
    ],
)
def test_settings_out_of_range_are_refused(build: type[PostHoc], settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        checked_settings("post-hoc correction", settings_of(build), settings)


def test_settings_of_a_recipe_are_accepted() -> None:
    assert checked_settings("", settings_of(LogitAdjustment), {"tau": None}) == {"tau": None}
    assert checked_settings("", settings_of(PriorShift), {"target": [1, 2.5], "strength": None}) == {
        "target": [1, 2.5],
        "strength": None,
    }
