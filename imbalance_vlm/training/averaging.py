"""Averages of weights: over the steps of a training, and between its start and its end.

[0] Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Gontijo-Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt. Robust
    Fine-Tuning of Zero-Shot Models. CVPR 2022. (WiSE-FT)
[1] github.com/mlfoundations/wise-ft, src/wise_ft.py
[2] Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. SIAM Journal on Control and Optimization
    1992. (why the average of the iterates is better than the last one)

    EMA        w' <- d w' + (1 - d) w after each step, d = min(decay, (1 + t) / (10 + t)) after t steps
    WiSE-FT    (1 - alpha) w_start + alpha w_end

Differs from [1] in: integers and booleans (a counter, a class count) are not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imbalance_vlm.components.ranges import Share
from imbalance_vlm.components.settings import check_arguments
from imbalance_vlm.errors import InputError

State = Mapping[str, Tensor]


def ema_decay(decay: float, updates: int) -> float:
    """Weight of the old average in an update, after `updates` earlier ones.

    It starts low, so that the first steps have little weight in the average of a short training.

    >>> [round(ema_decay(0.9, updates), 2) for updates in (1, 10, 1000)]
    [0.18, 0.55, 0.9]
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema(AveragedModel):
    """Exponential moving average of a module's parameters and floating-point buffers; `ema.module` is the average.

    Call `update(module)` after each step; the first call copies the module. Integers and booleans are always those of
    the module. The state_dict holds the average and the number of updates, so that a resumed run ends with the same
    numbers. Make it of a module that is on its device already: the number of updates stays on the CPU, so that no step
    waits for the device.

    Args:
        module: copied with its present weights, frozen ones included.
        decay: d, in [0, 1); the average covers about 1 / (1 - d) steps. 0 is the module itself.

    Raises:
        InputError: a decay out of range, or trained parameters in half precision, which cannot represent the small
            steps of an average.
    """

    def __init__(self, module: nn.Module, decay: Share = 0.999) -> None:
        check_arguments(decay=(Share, decay))
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.dtype.is_floating_point and parameter.dtype.itemsize < 4:
                raise InputError(
                    f"`module` must train in float32 to be averaged, got {parameter.dtype} for {name}; "
                    "keep the weights in float32 and compute in half precision, or leave out the average"
                )

        def average(averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
            """One update in place, of tensors of one dtype."""
            if averages[0].is_floating_point():
                get_ema_multi_avg_fn(ema_decay(decay, int(updates)))(list(averages), list(current), updates)
            else:
                for old, new in zip(averages, current, strict=True):
                    old.copy_(new)

        super().__init__(module, multi_avg_fn=average, use_buffers=True)
        self.module.requires_grad_(False)

    def update(self, module: nn.Module) -> None:
        """Include the weights of `module`, after a step, in the average."""
        self.update_parameters(module)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights, for `load_state_dict` of the module; they share memory with the average."""
        averaged: dict[str, Tensor] = self.module.state_dict()
        return averaged


def interpolate(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end, tensor by tensor: WiSE-FT between zero-shot and fine-tuned weights.

    Args:
        start: the state at alpha 0.
        end: the state at alpha 1, with the same keys and shapes.
        alpha: in [0, 1].

    Returns:
        New tensors with the dtypes and devices of `end`, computed in at least float32; exactly those of `start` and
        `end` at alpha 0 and 1 and wherever the two agree. Integers and booleans are those of `end`.

    Raises:
        InputError: different keys or shapes, or an alpha out of range.

    >>> interpolate({"w": torch.zeros(2)}, {"w": torch.tensor([2.0, 4.0])}, 0.25)["w"].tolist()
    [0.5, 1.0]
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"`alpha` must lie in [0, 1], got {alpha}")
    differences = _differences(start, end)
    if differences:
        more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise InputError(f"`start` and `end` must have the same tensors, got {'; '.join(differences[:5])}{more}")
    return {key: _interpolated(start[key], end[key], alpha) for key in end}


def _interpolated(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if not end.is_floating_point() or alpha == 1:
        return end.detach().clone()
    wide = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    a, b = start.detach().to(end.device, wide), end.detach().to(wide)
    mixed = a if alpha == 0 else torch.where(a == b, b, (1 - alpha) * a + alpha * b)
    return mixed.to(end.dtype, copy=True)


def _differences(start: State, end: State) -> list[str]:
    """Where two states differ in keys, shapes or kinds of numbers."""
    differences = [f"{key} in `start` only" for key in sorted(start.keys() - end.keys())]
    differences += [f"{key} in `end` only" for key in sorted(end.keys() - start.keys())]
    for key in sorted(start.keys() & end.keys()):
        a, b = start[key], end[key]
        if a.shape != b.shape:
            differences.append(f"{key} of shape {tuple(a.shape)} and {tuple(b.shape)}")
        elif a.is_floating_point() != b.is_floating_point():
            differences.append(f"{key} of {a.dtype} and {b.dtype}")
    return differences
