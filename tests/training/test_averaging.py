"""Averages of weights against plain loops; each comparison is seen to fail on the weights without an average."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import InputError
from imbalance_vlm.training.averaging import Ema, ema_decay, interpolate
from imbalance_vlm.training.checkpoints import load_checkpoint, save_checkpoint


def net(seed: int = 0) -> nn.Module:
    """Parameters, floating-point buffers, a counter and a mask."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module.register_buffer("mask", torch.tensor([True, False]))
    return module


def change_weights(module: nn.Module, step: int) -> None:
    """Change everything, as a training step would."""
    rng = np.random.default_rng(step)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(np.asarray(rng.normal(0, 1, value.shape))))
        else:
            value.add_(1) if value.dtype == torch.int64 else value.logical_not_()


def loops(states: Sequence[dict[str, Tensor]], decay: float) -> dict[str, list[float]]:
    """The average of the states one after the other, number by number in double precision."""
    averages: dict[str, list[float]] = {}
    for key in states[0]:
        average = [float(x) for x in states[0][key].flatten()]
        for t in range(1, len(states)):
            d = min(decay, (1 + t) / (10 + t))
            now = [float(x) for x in states[t][key].flatten()]
            if states[t][key].is_floating_point():
                average = [d * old + (1 - d) * new for old, new in zip(average, now, strict=True)]
            else:
                average = now
        averages[key] = average
    return averages


def assert_equal(state: dict[str, Tensor], wanted: dict[str, list[float]], **tolerance: float) -> None:
    assert list(state) == list(wanted)
    for key, value in state.items():
        np.testing.assert_allclose(
            value.double().flatten().numpy(), wanted[key], **({"rtol": 1e-5, "atol": 1e-6} | tolerance)
        )


def run(steps: range, module: nn.Module, ema: Ema) -> list[dict[str, Tensor]]:
    states = []
    for step in steps:
        change_weights(module, step)
        ema.update(module)
        states.append(copy.deepcopy(module.state_dict()))
    return states


# -- over the steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_moving_average_follows_its_equation(decay: float) -> None:
    module = net()
    ema = Ema(module, decay=decay)
    states = run(range(6), module, ema)
    wanted = loops(states, decay)
    assert_equal(ema.state(), wanted)
    if decay > 0:
        with pytest.raises(AssertionError):
            assert_equal(module.state_dict(), wanted)


def test_decay_warms_up_to_its_value() -> None:
    assert [ema_decay(0.999, t) for t in (0, 8, 90)] == [0.1, 0.5, 0.91]
    assert ema_decay(0.999, 10**6) == 0.999


def test_resumed_average_ends_with_the_same_numbers(tmp_path: Path) -> None:
    module, other = net(), net(1)
    uninterrupted, first, second = Ema(module), Ema(module), Ema(other)
    run(range(5), copy.deepcopy(module), uninterrupted)
    run(range(2), module, first)
    save_checkpoint(tmp_path / "checkpoint.pt", {"head": module.state_dict(), "ema": first.state_dict()})
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    other.load_state_dict(state["head"])
    second.load_state_dict(state["ema"])
    run(range(2, 5), other, second)
    for key, value in uninterrupted.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_average_can_be_loaded_and_does_not_change_training() -> None:
    module, other = net(), net(1)
    ema = Ema(module, decay=0.5)
    before = copy.deepcopy(module.state_dict())
    other.load_state_dict(ema.state())  # before any step: the module as it was
    assert all(torch.equal(other.state_dict()[key], value) for key, value in before.items())
    states = run(range(3), module, ema)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in states[-1].items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    other.load_state_dict(ema.state())
    assert_equal(other.state_dict(), loops(states, 0.5))
    assert all(parameter.requires_grad for parameter in other.parameters())
    ema.update(module)
    assert_equal(other.state_dict(), loops(states, 0.5))  # a copy, not a view


def test_frozen_weights_stay_to_the_last_bit() -> None:
    module = net()
    ema = Ema(module, decay=0.7)
    for _ in range(50):
        ema.update(module)
    for key, value in module.state_dict().items():
        assert torch.equal(ema.state()[key], value), key


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan, "much"])
def test_decay_out_of_range_is_refused(decay: Any) -> None:
    with pytest.raises(InputError, match="`decay` must be a number >= 0 and < 1"):
        Ema(net(), decay=decay)


def test_trained_half_precision_is_refused() -> None:
    module = net().to(torch.bfloat16)
    with pytest.raises(InputError, match=r"0\.weight"):
        Ema(module)
    module.requires_grad_(False)
    Ema(module)


# -- between start and end ------------------------------------------------------------------------------------------


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "w": torch.from_numpy(rng.normal(0, 1, (2, 3))).to(dtype),
        "b": torch.from_numpy(rng.normal(0, 1, 2)).to(dtype),
        "steps": torch.tensor(seed),
        "on": torch.tensor([seed % 2 == 0]),
    }


def mixed_by_hand(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, list[float]]:
    interpolated = {}
    for key in end:
        a, b = ([float(x) for x in side[key].flatten()] for side in (start, end))
        mixed = [(1 - alpha) * x + alpha * y for x, y in zip(a, b, strict=True)]
        interpolated[key] = mixed if end[key].is_floating_point() else b
    return interpolated


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_interpolation_follows_its_equation(dtype: torch.dtype, alpha: float) -> None:
    start, end = state(1, dtype), state(2, dtype)
    got, wanted = interpolate(start, end, alpha), mixed_by_hand(start, end, alpha)
    assert_equal(got, wanted, rtol=float(torch.finfo(dtype).eps), atol=1e-7)
    assert {key: value.dtype for key, value in got.items()} == {key: value.dtype for key, value in end.items()}
    for other, at in ((start, 0.0), (end, 1.0)):
        if alpha != at:
            with pytest.raises(AssertionError):
                assert_equal(other, wanted, rtol=1e-2)


def test_interpolation_at_the_ends_is_exact() -> None:
    start, end = state(1), state(2)
    start["w"][0, 0], end["w"][0, 0] = -math.inf, -math.inf
    start["w"][0, 1] = -math.inf  # 0 times infinity is nan
    for alpha, wanted in ((0.0, start), (1.0, end)):
        got = interpolate(start, end, alpha)
        assert torch.equal(got["w"], wanted["w"])
        got["w"].zero_()
        assert wanted["w"].any(), "the result must not share memory with a state"
    assert interpolate(start, end, 0.5)["w"][0, :2].tolist() == [-math.inf, -math.inf]
    assert interpolate(start, end, 0.0)["steps"] == end["steps"]


def test_equal_numbers_stay_equal() -> None:
    start = state(1)
    for alpha in (0.1, 0.3, 0.7):
        assert torch.equal(interpolate(start, state(1), alpha)["w"], start["w"])


def test_half_and_single_precision_interpolate() -> None:
    start, end = state(1, torch.float16), state(2)
    assert interpolate(start, end, 0.25)["w"].dtype == torch.float32
    assert_equal(interpolate(start, end, 0.25), mixed_by_hand(start, end, 0.25))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match=r"`alpha` must lie in \[0, 1\]"):
        interpolate(state(1), state(2), alpha)


OTHER: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": ({"w": torch.zeros(2, 3), "b": torch.zeros(2), "steps": torch.tensor(0)}, "on in `start` only"),
    "more": (state(1) | {"extra": torch.zeros(1)}, "extra in `end` only"),
    "shape": (state(1) | {"w": torch.zeros(4, 3)}, r"w of shape \(2, 3\) and \(4, 3\)"),
    "kind": (state(1) | {"b": torch.zeros(2, dtype=torch.int64)}, r"b of torch\.float32 and torch\.int64"),
}


@pytest.mark.parametrize("case", OTHER)
def test_states_that_do_not_fit_are_refused(case: str) -> None:
    other, words = OTHER[case]
    with pytest.raises(InputError, match=words):
        interpolate(state(1), other, 0.5)


def test_long_list_of_differences_is_shortened() -> None:
    with pytest.raises(InputError, match="and 4 more"):
        interpolate({}, {f"layer{k}": torch.zeros(1) for k in range(9)}, 0.5)
