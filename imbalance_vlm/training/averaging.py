"""Averages of weights: over the steps of one training, between two models, and over several runs.

[0] Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Gontijo-Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt. Robust
    Fine-Tuning of Zero-Shot Models. CVPR 2022. (WiSE-FT)
[1] github.com/mlfoundations/wise-ft, src/wise_ft.py
[2] Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon, Kornblith, Schmidt. Model
    Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without Increasing Inference Time.
    ICML 2022. Recipe 1 is the greedy soup.
[3] github.com/mlfoundations/model-soups, main.py
[4] Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. SIAM Journal on Control and Optimization
    1992. (why the average of the iterates is better than the last one)

    EMA        w' <- d w' + (1 - d) w after each step, d = decay or min(decay, (1 + t) / (10 + t)) behind t steps
    WiSE-FT    (1 - alpha) w_start + alpha w_end
    soup       mean of w_1 .. w_k: of all, or of those that do not lower the score, tried from the best one down

Differs from [1] and [3] in: the mean of a greedy soup is taken anew from its members, not updated, so that it does not
depend on rounding along the way; what is no floating-point number (a counter, a class count) is never averaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imbalance_vlm.components.ranges import Share
from imbalance_vlm.components.settings import mistake
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically

State = Mapping[str, Tensor]
Score = Callable[[dict[str, Tensor]], float]

KEY = "imbalance_vlm"
"""The entry of a weight file's header that holds our metadata, as one JSON text."""


# -- over the steps of one training ----------------------------------------------------------------------------------


def ema_decay(decay: float, updates: int, warm_up: bool = True) -> float:
    """Share of the old average that is kept when `updates` states are in it already.

    >>> [round(ema_decay(0.9, updates), 2) for updates in (1, 10, 1000)]
    [0.18, 0.55, 0.9]
    """
    return min(decay, (1 + updates) / (10 + updates)) if warm_up else decay


class Ema(AveragedModel):
    """Exponential moving average of a module's parameters and floating-point buffers; `ema.module` is the average.

    Call `update(module)` after each step; the first call copies the module. Whole numbers and booleans are always those
    of the module. The state_dict holds the average and the number of updates, so that a resumed run ends with the same
    numbers. Make it of a module that is on its device already: the count of updates stays on the CPU, where no step
    waits for it.

    Args:
        module: copied, at the moment with the weights it has; what is frozen in it is in the copy too.
        decay: d, in [0, 1); the average remembers about 1 / (1 - d) steps. 0 is the module itself.
        warm_up: whether the decay starts low, as min(d, (1 + t) / (10 + t)), so that a short training is not held back
            by its first steps.

    Raises:
        InputError: a decay out of range, or trained parameters in half precision: a step of the average is smaller than
            what they can hold.
    """

    def __init__(self, module: nn.Module, decay: Share = 0.999, *, warm_up: bool = True) -> None:
        wrong = mistake(Share, decay)
        if wrong:
            raise InputError(f"`decay` {wrong}")
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.dtype.is_floating_point and parameter.dtype.itemsize < 4:
                raise InputError(
                    f"`module` must train in float32 to be averaged, got {parameter.dtype} for {name}; "
                    "keep the weights in float32 and compute in half precision, or leave out the average"
                )

        def average(averages: Sequence[Tensor], now: Sequence[Tensor], updates: Tensor | int) -> None:
            """One update in place, of tensors of one dtype."""
            if averages[0].is_floating_point():
                get_ema_multi_avg_fn(ema_decay(decay, int(updates), warm_up))(list(averages), list(now), updates)
            else:
                for old, new in zip(averages, now, strict=True):
                    old.copy_(new)

        super().__init__(module, multi_avg_fn=average, use_buffers=True)
        self.module.requires_grad_(False)

    def update(self, module: nn.Module) -> None:
        """Take in the weights of `module` after a step."""
        self.update_parameters(module)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights, for `load_state_dict` of a module like the one averaged; they share the average's
        memory."""
        averaged: dict[str, Tensor] = self.module.state_dict()
        return averaged


# -- between two models, and over several ----------------------------------------------------------------------------


def interpolate(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end, tensor by tensor: WiSE-FT between zero-shot and fine-tuned weights.

    Args:
        start: the state at alpha 0.
        end: the state at alpha 1.
        alpha: in [0, 1].

    Returns:
        New tensors with the dtypes and devices of `end`, computed in at least float32; at 0 and 1, and wherever the two
        agree, they are exactly theirs. Whole numbers and booleans are those of `end`.

    Raises:
        InputError: other keys or shapes in one than in the other, or an alpha out of range.

    >>> interpolate({"w": torch.zeros(2)}, {"w": torch.tensor([2.0, 4.0])}, 0.25)["w"].tolist()
    [0.5, 1.0]
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"`alpha` must lie in [0, 1], got {alpha}")
    _check_alike({"`start`": start, "`end`": end})
    return {key: _between(start[key], end[key], alpha) for key in end}


def _between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if not end.is_floating_point() or alpha == 1:
        return end.detach().clone()
    wide = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    a, b = start.detach().to(end.device, wide), end.detach().to(wide)
    mixed = a if alpha == 0 else torch.where(a == b, b, (1 - alpha) * a + alpha * b)
    return mixed.to(end.dtype, copy=True)


def sweep(start: State, end: State, alphas: Sequence[float], score: Score) -> list[tuple[float, float]]:
    """(alpha, score) of the interpolation at each of `alphas`, in their order; `score` is called on a state.

    >>> sweep({"w": torch.zeros(1)}, {"w": torch.ones(1)}, [0, 0.5, 1], lambda state: -float(state["w"]))
    [(0, -0.0), (0.5, -0.5), (1, -1.0)]
    """
    return [(alpha, score(interpolate(start, end, alpha))) for alpha in alphas]


def uniform_soup(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of the states, tensor by tensor.

    Returns:
        New tensors with the dtypes and devices of the first state, summed in at least float32. Whole numbers and
        booleans are those of the first state.

    Raises:
        InputError: no states, or other keys or shapes in one than in the first.
    """
    if not states:
        raise InputError("`states` must hold at least one state, got none")
    _check_alike({f"state {number}": state for number, state in enumerate(states)})
    return {key: _mean([state[key] for state in states]) for key in states[0]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0].detach()
    if not first.is_floating_point() or len(tensors) == 1:
        return first.clone()
    total = first.to(torch.promote_types(first.dtype, torch.float32), copy=True)
    for tensor in tensors[1:]:
        total += tensor.detach().to(total.device, total.dtype)
    return (total / len(tensors)).to(first.dtype)


def greedy_soup(states: Sequence[State], score: Score) -> tuple[dict[str, Tensor], list[int]]:
    """The soup of those states that do not lower its score, tried from the best one down.

    Args:
        states: of runs that start from the same weights, for the averages between them to be any good.
        score: the higher the better, on a VALIDATION set; called 2 k - 1 times for k states.

    Returns:
        The soup, and the positions of its members in `states` in the order they came in. Of equal scores the earlier
        state comes first.

    Raises:
        InputError: no states, other keys or shapes in one than in the first, or a score that is no number.
    """
    if not states:
        raise InputError("`states` must hold at least one state, got none")
    _check_alike({f"state {number}": state for number, state in enumerate(states)})
    own = [score(dict(state)) for state in states]
    for number, value in enumerate(own):
        if math.isnan(value):
            raise InputError(f"`score` must give a number for every state, got nan for state {number}")
    order = sorted(range(len(states)), key=lambda number: -own[number])
    members, best = order[:1], own[order[0]]
    soup = uniform_soup([states[members[0]]])
    for number in order[1:]:
        tried = uniform_soup([states[member] for member in [*members, number]])
        value = score(tried)
        if value >= best:
            members.append(number)
            soup, best = tried, value
    return soup, members


def _check_alike(states: Mapping[str, State]) -> None:
    """All must have the keys, shapes and kinds of numbers of the first."""
    (first, wanted), *others = states.items()
    for name, state in others:
        wrong = [f"{key} is in {first} only" for key in wanted if key not in state]
        wrong += [f"{key} is in {name} only" for key in state if key not in wanted]
        for key in wanted.keys() & state.keys():
            one, other = wanted[key], state[key]
            if one.shape != other.shape:
                wrong.append(f"{key} is {tuple(one.shape)} in {first} and {tuple(other.shape)} in {name}")
            elif one.is_floating_point() != other.is_floating_point():
                wrong.append(f"{key} is {one.dtype} in {first} and {other.dtype} in {name}")
        if wrong:
            more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise InputError(
                f"{first} and {name} must have the same tensors to be averaged: {'; '.join(sorted(wrong)[:5])}{more}; "
                "take runs of one head over the same classes and encoder"
            )


# -- weight files of finished runs -----------------------------------------------------------------------------------


def interpolate_files(start: Path, end: Path, alpha: float, out: Path) -> None:
    """Write the interpolation of two weight files, such as two runs' head.safetensors, to `out`.

    The header of `out` keeps that of `end` and says what it was made of.

    Raises:
        InputError: a file that is missing or no weight file, weights of another shape or another base model, an alpha
            out of range, or an `out` that is one of the two.
    """
    _check_out(out, [start, end])
    (first, made_of), (second, metadata) = _read(start), _read(end)
    if not 0 <= alpha <= 1:
        raise InputError(f"`alpha` must lie in [0, 1], got {alpha}")
    _check_base({str(start): made_of, str(end): metadata})
    _check_alike({str(start): first, str(end): second})
    how = {"averaged": "interpolation", "alpha": repr(alpha), "of": json.dumps([made_of, metadata], sort_keys=True)}
    _write(out, interpolate(first, second, alpha), metadata | how)


def soup_files(paths: Sequence[Path], out: Path) -> None:
    """Write the uniform soup of weight files to `out`; its header keeps that of the first and says what it was made of.

    Raises:
        InputError: no files, one that is missing or no weight file, weights of another shape or another base model, or
            an `out` that is one of them.
    """
    if not paths:
        raise InputError("`paths` must name at least one weight file, got none")
    _check_out(out, paths)
    read = {str(path): _read(path) for path in paths}
    if len(read) < len(paths):
        raise InputError(f"`paths` must name each weight file once, got {', '.join(map(str, paths))}")
    _check_base({name: metadata for name, (_, metadata) in read.items()})
    _check_alike({name: state for name, (state, _) in read.items()})
    sources = [metadata for _, metadata in read.values()]
    how = {"averaged": "uniform soup", "of": json.dumps(sources, sort_keys=True)}
    _write(out, uniform_soup([state for state, _ in read.values()]), sources[0] | how)


def _check_base(metadata: Mapping[str, Mapping[str, str]]) -> None:
    """All that say which base model they were trained on must say the same."""
    known = {name: entries["base"] for name, entries in metadata.items() if entries.get("base")}
    first = next(iter(known), "")
    for name, base in known.items():
        if base != known[first]:
            raise InputError(
                f"{first} and {name} were trained on different base models, with fingerprints {known[first]} and "
                f"{base}; take runs of one encoder"
            )


def _check_out(out: Path, sources: Sequence[Path]) -> None:
    for path in sources:
        if path.resolve() == out.resolve():
            raise InputError(f"`out` must be a file of its own, got {out}, which is averaged itself")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a weight file on the CPU, and our metadata in its header (none where others wrote it)."""
    if not path.is_file():
        raise InputError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dictionary)
            header = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file or a damaged one: {error}") from error
    return state, json.loads(header.get(KEY, "{}"))


def _write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    tensors = {key: value.contiguous() for key, value in state.items()}
    header = {KEY: json.dumps(metadata, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, header))
