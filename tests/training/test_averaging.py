"""Averages of weights against plain loops, and each comparison against the last weights left as they are."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imbalance_vlm import InputError
from imbalance_vlm.training.averaging import (
    Ema,
    ema_decay,
    greedy_soup,
    interpolate,
    interpolate_files,
    soup_files,
    sweep,
    uniform_soup,
)
from imbalance_vlm.training.checkpoints import load_checkpoint, load_weights, save_checkpoint, save_weights


def net(seed: int = 0) -> nn.Module:
    """Parameters, floating-point buffers, a counter and a mask."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made.register_buffer("mask", torch.tensor([True, False]))
    return made


def walk(module: nn.Module, step: int) -> None:
    """Change everything, as a training step would."""
    rng = np.random.default_rng(step)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(np.asarray(rng.normal(0, 1, value.shape))))
        else:
            value.add_(1) if value.dtype == torch.int64 else value.logical_not_()


def loops(states: Sequence[dict[str, Tensor]], decay: float, warm_up: bool) -> dict[str, list[float]]:
    """The average of the states one after the other, number by number in double precision."""
    found: dict[str, list[float]] = {}
    for key in states[0]:
        average = [float(x) for x in states[0][key].flatten()]
        for t in range(1, len(states)):
            d = min(decay, (1 + t) / (10 + t)) if warm_up else decay
            now = [float(x) for x in states[t][key].flatten()]
            if states[t][key].is_floating_point():
                average = [d * old + (1 - d) * new for old, new in zip(average, now, strict=True)]
            else:
                average = now
        found[key] = average
    return found


def assert_equal(state: dict[str, Tensor], wanted: dict[str, list[float]], **tolerance: float) -> None:
    assert list(state) == list(wanted)
    for key, value in state.items():
        np.testing.assert_allclose(
            value.double().flatten().numpy(), wanted[key], **({"rtol": 1e-5, "atol": 1e-6} | tolerance)
        )


def run(steps: range, module: nn.Module, ema: Ema) -> list[dict[str, Tensor]]:
    states = []
    for step in steps:
        walk(module, step)
        ema.update(module)
        states.append(copy.deepcopy(module.state_dict()))
    return states


# -- over the steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_the_moving_average_follows_its_equation(decay: float, warm_up: bool) -> None:
    module = net()
    ema = Ema(module, decay=decay, warm_up=warm_up)
    states = run(range(6), module, ema)
    wanted = loops(states, decay, warm_up)
    assert_equal(ema.state(), wanted)
    if decay > 0:
        with pytest.raises(AssertionError):
            assert_equal(module.state_dict(), wanted)
        with pytest.raises(AssertionError):
            assert_equal(ema.state(), loops(states, decay, not warm_up))


def test_the_decay_warms_up_to_its_value() -> None:
    assert [ema_decay(0.999, t) for t in (0, 8, 90)] == [0.1, 0.5, 0.91]
    assert ema_decay(0.999, 10**6) == 0.999
    assert ema_decay(0.999, 0, warm_up=False) == 0.999


def test_a_resumed_average_ends_with_the_same_numbers(tmp_path: Path) -> None:
    module, other = net(), net(1)
    whole, first, second = Ema(module), Ema(module), Ema(other)
    run(range(5), copy.deepcopy(module), whole)
    run(range(2), module, first)
    save_checkpoint(tmp_path / "checkpoint.pt", {"head": module.state_dict(), "ema": first.state_dict()})
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    other.load_state_dict(state["head"])
    second.load_state_dict(state["ema"])
    run(range(2, 5), other, second)
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_the_average_goes_into_a_module_and_leaves_training_alone() -> None:
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
    assert_equal(other.state_dict(), loops(states, 0.5, True))
    assert all(parameter.requires_grad for parameter in other.parameters())
    ema.update(module)
    assert_equal(other.state_dict(), loops(states, 0.5, True))  # a copy, no view


def test_what_is_frozen_stays_to_the_last_bit() -> None:
    module = net()
    ema = Ema(module, decay=0.7, warm_up=False)
    for _ in range(50):
        ema.update(module)
    for key, value in module.state_dict().items():
        assert torch.equal(ema.state()[key], value), key


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan, "much"])
def test_a_decay_out_of_range_is_refused(decay: Any) -> None:
    with pytest.raises(InputError, match="`decay` must be a number >= 0 and < 1"):
        Ema(net(), decay=decay)


def test_half_precision_is_refused_where_it_is_trained() -> None:
    module = net().to(torch.bfloat16)
    with pytest.raises(InputError, match=r"0\.weight"):
        Ema(module)
    module.requires_grad_(False)
    Ema(module)


# -- between two -----------------------------------------------------------------------------------------------------


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "w": torch.from_numpy(rng.normal(0, 1, (2, 3))).to(dtype),
        "b": torch.from_numpy(rng.normal(0, 1, 2)).to(dtype),
        "steps": torch.tensor(seed),
        "on": torch.tensor([seed % 2 == 0]),
    }


def mixed_by_hand(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, list[float]]:
    found = {}
    for key in end:
        a, b = ([float(x) for x in side[key].flatten()] for side in (start, end))
        mixed = [(1 - alpha) * x + alpha * y for x, y in zip(a, b, strict=True)]
        found[key] = mixed if end[key].is_floating_point() else b
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_interpolation_follows_its_equation(dtype: torch.dtype, alpha: float) -> None:
    start, end = state(1, dtype), state(2, dtype)
    got, wanted = interpolate(start, end, alpha), mixed_by_hand(start, end, alpha)
    assert_equal(got, wanted, rtol=float(torch.finfo(dtype).eps), atol=1e-7)
    assert {key: value.dtype for key, value in got.items()} == {key: value.dtype for key, value in end.items()}
    for other, there in ((start, 0.0), (end, 1.0)):
        if alpha != there:
            with pytest.raises(AssertionError):
                assert_equal(other, wanted, rtol=1e-2)


def test_the_ends_are_the_states_themselves() -> None:
    start, end = state(1), state(2)
    start["w"][0, 0], end["w"][0, 0] = -math.inf, -math.inf
    start["w"][0, 1] = -math.inf  # 0 times infinity is no number
    for alpha, there in ((0.0, start), (1.0, end)):
        got = interpolate(start, end, alpha)
        assert torch.equal(got["w"], there["w"])
        got["w"].zero_()
        assert there["w"].any(), "the result must not share memory with a state"
    assert interpolate(start, end, 0.5)["w"][0, :2].tolist() == [-math.inf, -math.inf]
    assert interpolate(start, end, 0.0)["steps"] == end["steps"]


def test_equal_numbers_stay_equal() -> None:
    start = state(1)
    for alpha in (0.1, 0.3, 0.7):
        assert torch.equal(interpolate(start, state(1), alpha)["w"], start["w"])


def test_half_precision_weights_meet_single_precision_ones() -> None:
    start, end = state(1, torch.float16), state(2)
    assert interpolate(start, end, 0.25)["w"].dtype == torch.float32
    assert_equal(interpolate(start, end, 0.25), mixed_by_hand(start, end, 0.25))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match=r"`alpha` must lie in \[0, 1\]"):
        interpolate(state(1), state(2), alpha)


OTHER: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": ({"w": torch.zeros(2, 3), "b": torch.zeros(2), "steps": torch.tensor(0)}, "on is in"),
    "more": (state(1) | {"extra": torch.zeros(1)}, "extra is in"),
    "shape": (state(1) | {"w": torch.zeros(4, 3)}, r"w is \(2, 3\) in .* and \(4, 3\) in"),
    "kind": (state(1) | {"b": torch.zeros(2, dtype=torch.int64)}, r"b is torch\.float32 in .* and torch\.int64 in"),
}


@pytest.mark.parametrize("case", OTHER)
def test_states_that_do_not_fit_are_refused_by_name(case: str) -> None:
    other, words = OTHER[case]
    with pytest.raises(InputError, match=words):
        interpolate(state(1), other, 0.5)
    with pytest.raises(InputError, match=words):
        uniform_soup([state(1), state(2), other])
    with pytest.raises(InputError, match=words):
        greedy_soup([state(1), other], lambda _: 1.0)


def test_a_long_list_of_differences_is_cut() -> None:
    with pytest.raises(InputError, match="and 4 more"):
        interpolate({}, {f"layer{k}": torch.zeros(1) for k in range(9)}, 0.5)


def test_a_sweep_scores_every_alpha() -> None:
    start, end = state(1), state(2)
    got = sweep(start, end, [0.0, 0.4, 1.0], lambda there: float(there["w"].sum()))
    wanted = [(a, sum(mixed_by_hand(start, end, a)["w"])) for a in (0.0, 0.4, 1.0)]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


# -- over several ----------------------------------------------------------------------------------------------------


def mean_by_hand(states: Sequence[dict[str, Tensor]]) -> dict[str, list[float]]:
    found = {}
    for key, first in states[0].items():
        columns = zip(*([float(x) for x in one[key].flatten()] for one in states), strict=True)
        found[key] = [sum(column) / len(states) if first.is_floating_point() else column[0] for column in columns]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_uniform_soup_is_the_mean(dtype: torch.dtype) -> None:
    states = [state(seed, dtype) for seed in range(1, 5)]
    wanted = mean_by_hand(states)
    assert_equal(uniform_soup(states), wanted, rtol=float(torch.finfo(dtype).eps), atol=1e-7)
    with pytest.raises(AssertionError):
        assert_equal(states[0], wanted, rtol=1e-2)
    assert uniform_soup(states)["w"].dtype == dtype
    alone = uniform_soup(states[:1])
    assert torch.equal(alone["w"], states[0]["w"])
    assert alone["w"].data_ptr() != states[0]["w"].data_ptr()


def test_half_precision_states_are_summed_in_single() -> None:
    states = [{"w": torch.full((1,), 60000.0, dtype=torch.float16)}] * 4
    assert uniform_soup(states)["w"].tolist() == [60000.0]
    ones = [{"w": torch.ones(1, dtype=torch.bfloat16)}] * 600  # bfloat16 cannot count beyond 256
    assert uniform_soup(ones)["w"].tolist() == [1.0]


def greedy_by_hand(values: Sequence[float], score: Any) -> tuple[float, list[int]]:
    order = sorted(range(len(values)), key=lambda k: -score(values[k]))
    members = [order[0]]
    best = score(values[order[0]])
    for k in order[1:]:
        mean = sum(values[m] for m in [*members, k]) / (len(members) + 1)
        if score(mean) >= best:
            best = score(mean)
            members.append(k)
    return sum(values[m] for m in members) / len(members), members


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_soup_follows_its_recipe(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 2, 8).tolist()

    def score(value: float) -> float:
        return -abs(value - 0.3)

    calls = []

    def of_state(there: dict[str, Tensor]) -> float:
        calls.append(there)
        return score(float(there["w"]))

    states = [{"w": torch.tensor([value], dtype=torch.float64)} for value in values]
    soup, members = greedy_soup(states, of_state)
    wanted, wanted_members = greedy_by_hand(values, score)
    assert members == wanted_members
    assert float(soup["w"]) == pytest.approx(wanted, rel=1e-12)
    assert len(calls) == 2 * len(values) - 1
    assert score(float(soup["w"])) >= max(map(score, values))


def test_the_greedy_soup_takes_some_and_leaves_some() -> None:
    states = [{"w": torch.tensor([value])} for value in (9.0, 1.0, -1.0, -9.5)]
    soup, members = greedy_soup(states, lambda there: -abs(float(there["w"])))
    assert (members, soup["w"].tolist()) == ([1, 2], [0.0])
    assert uniform_soup(states)["w"].tolist() != soup["w"].tolist()


def test_states_of_equal_score_all_come_in_earliest_first() -> None:
    assert greedy_soup([state(1)] * 3, lambda _: 50.0)[1] == [0, 1, 2]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="nan for state 1"):
        greedy_soup([state(1), state(2)], lambda there: math.nan if there["steps"] == 2 else 1.0)


def test_a_soup_of_nothing_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda: uniform_soup([]),
        lambda: greedy_soup([], lambda _: 1.0),
        lambda: soup_files([], tmp_path / "o"),
    ):
        with pytest.raises(InputError, match="at least one"):
            call()


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three finished heads."""
    paths = [tmp_path / f"run{seed}" / "head.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        module = net(seed)
        walk(module, seed)
        save_weights(path, module, {"recipe": "tiny", "recipe_hash": f"hash{seed}"})
    return paths


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["imbalance_vlm"])
    return found


def test_two_files_make_one_that_a_head_can_load(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "head.safetensors"
    interpolate_files(files[0], files[1], 0.3, out)
    module = net(9)
    load_weights(out, module)
    assert_equal(load_file(out), mixed_by_hand(load_file(files[0]), load_file(files[1]), 0.3))
    assert_equal(
        {key: module.state_dict()[key] for key in load_file(out)}, mixed_by_hand(*map(load_file, files[:2]), 0.3)
    )
    said = header(out)
    assert (said["recipe"], said["recipe_hash"], said["averaged"], said["alpha"]) == (
        "tiny",
        "hash1",
        "interpolation",
        "0.3",
    )
    assert [source["recipe_hash"] for source in json.loads(said["of"])] == ["hash0", "hash1"]
    assert [path.name for path in out.parent.iterdir()] == ["head.safetensors"]


def test_files_make_a_soup(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    soup_files(files, out)
    assert_equal(load_file(out), mean_by_hand([load_file(path) for path in files]))
    assert [source["recipe_hash"] for source in json.loads(header(out)["of"])] == ["hash0", "hash1", "hash2"]
    once = out.read_bytes()
    soup_files(files, out)
    assert out.read_bytes() == once


def test_files_without_our_header_are_averaged_too(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_file(state(seed), tmp_path / f"{seed}.safetensors")
    soup_files([tmp_path / "1.safetensors", tmp_path / "2.safetensors"], tmp_path / "out.safetensors")
    assert_equal(
        load_file(tmp_path / "out.safetensors"),
        mean_by_hand([load_file(tmp_path / f"{s}.safetensors") for s in (1, 2)]),
    )


def test_files_that_cannot_be_averaged_are_refused_and_nothing_is_written(files: list[Path], tmp_path: Path) -> None:
    other, broken, out = tmp_path / "other.safetensors", tmp_path / "broken.safetensors", tmp_path / "out.safetensors"
    save_weights(other, nn.Sequential(nn.Linear(3, 5)), {"recipe": "other"})
    broken.write_bytes(files[0].read_bytes()[:60])
    for first, second, alpha, word in (
        (files[0], other, 0.5, r"run0.*other\.safetensors.*0\.bias is \(4,\)"),
        (files[0], broken, 0.5, r"broken\.safetensors is no safetensors file"),
        (files[0], tmp_path / "none.safetensors", 0.5, "no weights at"),
        (files[0], files[1], 1.5, "`alpha`"),
    ):
        with pytest.raises(InputError, match=word):
            interpolate_files(first, second, alpha, out)
        if alpha <= 1:
            with pytest.raises(InputError, match=word):
                soup_files([first, second], out)
    assert not out.exists()


def test_runs_on_different_base_models_are_not_averaged(tmp_path: Path) -> None:
    paths = [tmp_path / f"{base}.safetensors" for base in ("one", "two")]
    for path in paths:
        save_weights(path, net(0), {"base": f"fingerprint-{path.stem}"})
    said = "different base models, with fingerprints fingerprint-one and fingerprint-two; take runs of one encoder"
    with pytest.raises(InputError, match=said):
        interpolate_files(*paths, 0.5, tmp_path / "out.safetensors")
    with pytest.raises(InputError, match=said):
        soup_files(paths, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_input_is_never_overwritten(files: list[Path]) -> None:
    before = files[0].read_bytes()
    with pytest.raises(InputError, match="`out` must be a file of its own"):
        interpolate_files(files[0], files[1], 0.5, files[0])
    with pytest.raises(InputError, match="`out` must be a file of its own"):
        soup_files(files, files[0])
    with pytest.raises(InputError, match="each weight file once"):
        soup_files([files[0], files[0]], files[0].with_name("soup.safetensors"))
    assert files[0].read_bytes() == before
