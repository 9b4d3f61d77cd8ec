"""The temperature against a golden-section search, per group, and at its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.post_hoc.temperature import LIMIT, STEPS, Temperature, nll_slope
from tests.balancing.post_hoc.problem import TAIL, TRAIN, C, Untouched, oracle_temperature, tailed


def nll(rows: list[list[float]], labels: list[int], temperature: float) -> float:
    total = 0.0
    for row, y in zip(rows, labels, strict=True):
        top = max(row) / temperature
        total += top + math.log(sum(math.exp(z / temperature - top) for z in row)) - row[y] / temperature
    return total / len(rows)


def golden(rows: list[list[float]], labels: list[int]) -> float:
    """T of the smallest mean NLL, by golden-section search on log T."""
    low, high, ratio = -3.0, 3.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if nll(rows, labels, math.exp(left)) < nll(rows, labels, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def assert_finds_the_best(correction: Temperature, scale: float) -> None:
    logits, labels = tailed()
    logits = scale * logits
    correction.fit(logits, labels)
    wanted = golden(logits.tolist(), labels.tolist())
    rows = oracle_temperature(logits.tolist(), wanted)
    np.testing.assert_allclose(correction(logits).softmax(1).numpy(), rows, atol=2e-3)


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_temperature_minimises_the_validation_nll(scale: float) -> None:
    correction = Temperature(TAIL)
    assert_finds_the_best(correction, scale)
    logits, labels = tailed()
    fitted_temperatures = correction.fit(scale * logits, labels)["temperature"]
    assert fitted_temperatures == pytest.approx(golden((scale * logits).tolist(), labels.tolist()), rel=2 / STEPS)
    with pytest.raises(AssertionError):
        assert_finds_the_best(Temperature(TAIL, T=1.0), scale)


def test_slope_is_that_of_the_nll() -> None:
    logits, labels = tailed(9)
    for b in (0.3, 1.0, 2.5):
        step = 1e-6
        rows, y = logits.tolist(), labels.tolist()
        wanted = 9 * (nll(rows, y, 1 / (b + step)) - nll(rows, y, 1 / (b - step))) / (2 * step)
        assert nll_slope(logits, labels, 1 / b) == pytest.approx(wanted, rel=1e-6)


def test_slope_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    unblocked = nll_slope(*tailed(), 1.3)
    monkeypatch.setattr("imbalance_vlm.balancing.post_hoc.temperature.BLOCK", 7 * C)
    assert nll_slope(*tailed(), 1.3) == pytest.approx(unblocked, rel=1e-12)


def groupwise(unsure: float = 0.3, sure: float = 8.0) -> tuple[Tensor, Tensor]:
    """Logits too sharp where a head class wins and too flat where a tail class does."""
    logits, labels = tailed(400)
    logits = logits - torch.tensor(TRAIN).log()
    head = torch.isin(logits.argmax(1), torch.as_tensor(TAIL.groups["many"]))
    return torch.where(head[:, None], sure * logits, unsure * logits), labels


def test_each_group_has_the_best_temperature_of_its_rows() -> None:
    logits, labels = groupwise()
    correction = Temperature(TAIL, per_group=True)
    fitted_temperatures = correction.fit(logits, labels)
    predicted = logits.argmax(1)
    by_class = {}
    for name, members in TAIL.groups.items():
        in_group = torch.isin(predicted, torch.as_tensor(members))
        wanted = golden(logits[in_group].tolist(), labels[in_group].tolist())
        assert fitted_temperatures[f"temperature_{name}"] == pytest.approx(wanted, rel=2 / STEPS)
        by_class |= dict.fromkeys(members.tolist(), fitted_temperatures[f"temperature_{name}"])
    assert fitted_temperatures["temperature_many"] > 2 > 1 > fitted_temperatures["temperature_few"]
    np.testing.assert_allclose(correction(logits).softmax(1), oracle_temperature(logits.tolist(), by_class), rtol=1e-10)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            Untouched(TAIL)(logits).softmax(1), oracle_temperature(logits.tolist(), by_class), rtol=1e-3
        )
    overall = Temperature(TAIL)
    overall.fit(logits, labels)
    corrections = (correction, overall, Untouched(TAIL))
    losses = [float(torch.nn.functional.cross_entropy(correct(logits), labels)) for correct in corrections]
    assert losses[0] < losses[1] < losses[2]


def test_group_that_is_never_predicted_takes_the_overall_temperature() -> None:
    logits, labels = tailed()
    logits = logits - 100 * torch.tensor([0.0, 0, 0, 1, 1])
    keep = labels < 3
    fitted_temperatures = Temperature(TAIL, per_group=True).fit(logits[keep], labels[keep])
    assert fitted_temperatures["temperature_few"] == Temperature(TAIL).fit(logits[keep], labels[keep])["temperature"]


def test_group_without_classes_has_no_temperature() -> None:
    fitted_temperatures = Temperature(LongTail([500, 400, 300, 200, 101]), per_group=True).fit(*tailed())
    assert list(fitted_temperatures) == ["temperature_many"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
def test_no_prediction_changes(per_group: bool, dtype: torch.dtype) -> None:
    """Even where the two best logits are neighbours in half precision, which division alone would make equal."""
    logits, labels = groupwise()
    correction = Temperature(TAIL, per_group=per_group)
    correction.fit(logits, labels)
    for rows in (logits.to(dtype), torch.arange(1, 500)[:, None] / 250.0 + torch.tensor([0.0, 0.0, -9.0, 0.008, 0.0])):
        rows = rows.to(dtype)
        assert torch.equal(correction(rows).argmax(1), rows.argmax(1))


def test_separable_data_give_a_bounded_temperature() -> None:
    labels = torch.arange(C).repeat(3)
    right = torch.eye(C)[labels]
    lowest, highest = math.exp(-LIMIT / STEPS), math.exp(LIMIT / STEPS)
    for logits in (0.1 * right, right, 1e4 * right, -right, -1e4 * right, torch.zeros_like(right)):
        for per_group in (False, True):
            correction = Temperature(TAIL, per_group=per_group)
            for fitted_temperatures in correction.fit(logits, labels).values():
                assert lowest <= fitted_temperatures <= highest
            assert torch.isfinite(correction(logits)).all()
    assert Temperature(TAIL).fit(0.1 * right, labels)["temperature"] == pytest.approx(lowest)
    assert Temperature(TAIL).fit(-right, labels)["temperature"] == pytest.approx(highest)
    assert Temperature(TAIL).fit(torch.zeros_like(right), labels)["temperature"] == 1.0


def test_rows_whose_true_class_is_masked_are_ignored() -> None:
    logits, labels = tailed()
    wanted = Temperature(TAIL).fit(
        logits[labels != 2][:, [0, 1, 3, 4]], torch.tensor([0, 1, 9, 2, 3])[labels[labels != 2]]
    )
    logits[:, 2] = -math.inf
    assert Temperature(TAIL).fit(logits, labels) == wanted


def test_fixed_temperature_per_group_is_refused() -> None:
    with pytest.raises(InputError, match="per_group"):
        Temperature(TAIL, per_group=True, T=1.5)


def test_class_without_images_keeps_its_logits() -> None:
    """Calibration changes no prediction, also of a zero-shot head, which predicts classes without images."""
    correction = Temperature(LongTail((500, 0, 60, 19, 3), allow_empty=True), per_group=True)
    correction.fit(*tailed())
    assert torch.isfinite(correction(tailed()[0])).all()
