"""The training loop, for cached features and for images alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.launcher import world_size
from imbalance_vlm.progress import bar
from imbalance_vlm.training.averaging import Ema, interpolate
from imbalance_vlm.training.distributed.processes import join, process_group
from imbalance_vlm.training.distributed.sharding import is_sharded
from imbalance_vlm.training.schedules import Schedule
from imbalance_vlm.training.settings import TrainingSettings
from imbalance_vlm.training.state import CheckpointTimer, TrainingState
from imbalance_vlm.training.step import TrainingStep

AfterEpoch = Callable[[int], dict[str, float]]
"""Number of a finished epoch, from 1 -> numbers to record with it."""


@dataclass(frozen=True)
class Trained:
    """Cost and history of a training.

    Args:
        seconds: training time, over all sessions.
        images_per_second: training images per second.
        history: the recorded numbers of each epoch.
    """

    seconds: float
    images_per_second: float
    history: list[dict[str, Any]] = field(default_factory=list)


def steps_per_epoch(images: Sized, batch_size: int) -> int:
    """Steps of an epoch, whose last batch may be smaller."""
    return math.ceil(len(images) / batch_size)


def train(
    objective: Objective,
    source: Source,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    folder: Path,
    after_epoch: AfterEpoch | None = None,
    stop_after: int | None = None,
    *,
    settings: TrainingSettings = TrainingSettings(),
) -> Trained:
    """Train the objective's head; the last epoch is the result, and nothing is chosen on test data.

    A run that was killed resumes from its last checkpoint and ends with the same numbers: the order of the data is a
    function of (seed, epoch), the learning rate one of the step, and the rest is in the checkpoint.

    Where several processes were started, they train together; see `imbalance_vlm.training.distributed.processes`.

    Args:
        objective: called with (features, targets); `on_epoch` is called before each epoch.
        source: the training features.
        sampler: gives the rows of each epoch, in order.
        optimizer: over what is trained.
        schedule: gives the learning rate of each step; a parameter group's own `lr_scale` multiplies it.
        folder: takes checkpoint.pt while training runs, and metrics.jsonl.
        after_epoch: called after each epoch; the numbers it returns are recorded in that epoch's line of metrics.jsonl.
        stop_after: epochs after which to stop; the schedule and the sampler still see all epochs. None for all.
        settings: length of the training, and how a step is computed.

    Returns:
        The training time, over all sessions, and what was recorded of each epoch.

    Raises:
        InputError: a non-finite loss, with the batch and what to change; settings that cannot be combined.
    """
    if world_size() > 1:
        join(source.labels.device.type)
    _check(objective, optimizer, settings)
    head, group = objective.head, process_group()
    averages, interpolates = settings.ema > 0, settings.interpolation < 1
    start = {key: value.detach().clone() for key, value in head.state_dict().items()} if interpolates else {}
    average = Ema(head, settings.ema) if averages else None
    step = TrainingStep(objective, optimizer, group, clip_grad_norm=settings.clip_grad_norm, compile=settings.compile)
    for param_group in optimizer.param_groups:
        param_group.setdefault("initial_lr", param_group["lr"])
    objective.gradient.start({name: p for name, p in head.named_parameters() if p.requires_grad})
    state = TrainingState(objective, average, optimizer, source, folder, group, step.local_random)
    state.resume()
    timer = CheckpointTimer(settings.checkpoint_seconds, group)
    steps, last = steps_per_epoch(source, settings.batch_size), min(stop_after or settings.epochs, settings.epochs)
    with bar(last, "train", "epoch", state.epoch) as progress:
        for epoch in range(state.epoch, last):
            rows = sampler.epoch(epoch, settings.epochs)
            plan = [_parts(batch, settings.accumulate) for batch in rows.split(settings.batch_size)]
            remaining = plan[state.step :]  # all of it, except in the epoch in which a run resumes
            batches = source.batches([step.local_rows(part) for parts in remaining for part in parts], epoch)
            objective.train()
            objective.on_epoch(epoch, settings.epochs)
            state.begin_epoch()
            for number, parts in enumerate(remaining, start=state.step):
                set_rates(optimizer, schedule, epoch * steps + number)
                state.add_step(step(parts, batches), parts)
                if average is not None:
                    average.update(head)
                if number + 1 < len(plan) and timer.is_due(number):
                    timer.run(state.save)
            state.end_epoch()
            if after_epoch is not None:
                state.history[-1] |= after_epoch(epoch + 1)
            if epoch + 1 < last and timer.is_due():
                timer.run(state.save)
            progress.update()
    if average is not None:
        head.load_state_dict(average.state())
    if interpolates:
        head.load_state_dict(interpolate(start, head.state_dict(), settings.interpolation))
    state.write_history()  # the checkpoint stays until the result is written
    return Trained(state.seconds, state.images / max(state.seconds, 1e-9), state.history)


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Set the learning rate of each parameter group for a step, counted from 0 over the whole training."""
    for group in optimizer.param_groups:
        group["lr"] = schedule(step, group["initial_lr"]) * group.get("lr_scale", 1.0)


def _parts(rows: Tensor, accumulate: int) -> list[Tensor]:
    """The rows of a batch in at most `accumulate` parts, none of which is empty."""
    return list(rows.tensor_split(min(accumulate, len(rows)))) if accumulate > 1 else [rows]


def _check(objective: Objective, optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> None:
    """Refuse settings that cannot be combined."""
    transform = None if objective.gradient.is_linear else type(objective.gradient).__name__
    if settings.accumulate > 1 and transform:
        raise InputError(
            f"`training.accumulate` must be 1 with a gradient transform ({transform}), which reads the gradient of a "
            f"whole batch, got {settings.accumulate}"
        )
    if not any(is_sharded(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        return
    if transform:
        raise InputError(
            f"`training.shard` must be false with a gradient transform ({transform}), which needs each gradient as a "
            "full tensor, got true"
        )
    if settings.ema > 0 or settings.interpolation < 1:
        raise InputError(
            "`training.ema` and `training.interpolation` need the weights as full tensors, got a tower that is sharded "
            "over the processes; set them to 0 and 1, or set training.shard to false"
        )
