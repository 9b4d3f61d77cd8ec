"""The state of a training, which a checkpoint saves and restores at any step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import plain, write_text
from imbalance_vlm.progress import note
from imbalance_vlm.training.averaging import Ema
from imbalance_vlm.training.checkpoints import CHECKPOINT_FILE, HISTORY_FILE, load_checkpoint, save_checkpoint
from imbalance_vlm.training.distributed.processes import ProcessGroup
from imbalance_vlm.training.distributed.random_state import (
    LocalRandom,
    generator_states,
    random_state,
    set_generator_states,
    set_random_state,
)
from imbalance_vlm.training.distributed.sharding import full_state, load_module_state, load_optimizer_state

STEPS_BETWEEN_CHECKS = 50
"""Steps between checks for a non-finite loss on a GPU, where each check forces a device sync."""
STEPS_BETWEEN_VOTES = 16
"""Steps between the votes of several processes on whether a checkpoint is due."""
NAMED_IMAGES = 5
"""Images of a batch that an error names."""
TRAINING_PER_WRITING = 20
"""Training continues for at least this many times as long as the last checkpoint took to write."""


class CheckpointTimer:
    """Decides when a checkpoint is due, for all processes alike.

    Args:
        seconds: between checkpoints; more where writing one takes longer than a twentieth of that.
        group: the processes that train together.
    """

    def __init__(self, seconds: float, group: ProcessGroup) -> None:
        self.seconds = self.wait = seconds
        self.group = group
        self.last = time.monotonic()

    def is_due(self, step: int | None = None) -> bool:
        """Whether a checkpoint is due after this step of an epoch, or after the epoch (None)."""
        votes = step is None or step % STEPS_BETWEEN_VOTES == STEPS_BETWEEN_VOTES - 1
        if self.group.size > 1 and not votes:
            return False
        return bool(self.group.broadcast(time.monotonic() - self.last >= self.wait))

    def run(self, save: Callable[[], None]) -> None:
        """Write a checkpoint, and measure how long that takes."""
        start = time.monotonic()
        save()
        self.last = time.monotonic()
        if self.seconds > 0:
            self.wait = max(self.seconds, TRAINING_PER_WRITING * (self.last - start))


class EpochLoss:
    """The mean loss of an epoch, and its first non-finite loss, without a device sync at each step.

    Args:
        source: names the images of a batch with a non-finite loss.

    Attributes:
        steps: counted in this epoch.
        images: counted in this epoch.
        total: sum of their losses.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.reset()

    def reset(self) -> None:
        """Start an epoch."""
        self.steps = 0
        self.images = 0
        self.total = torch.zeros(())
        self._first_bad = torch.tensor(-1)  # index into `_unchecked`
        self._unchecked: list[Tensor] = []  # first rows of each batch since the last check

    def add(self, losses: list[Tensor], parts: list[Tensor]) -> None:
        """Count a step, with the loss and the rows of each part of its batch."""
        for loss, rows in zip(losses, parts, strict=True):
            self.total = self.total.to(loss.device) + loss * len(rows)
            self.images += len(rows)
        finite = torch.stack(losses).isfinite().all() if len(losses) > 1 else losses[0].isfinite()
        index = len(self._unchecked)
        self._unchecked.append(torch.cat(parts)[:NAMED_IMAGES] if len(parts) > 1 else parts[0][:NAMED_IMAGES])
        first_bad = self._first_bad.to(finite.device)
        self._first_bad = torch.where(finite | (first_bad >= 0), first_bad, index)
        self.steps += 1

    @property
    def check_is_due(self) -> bool:
        """Whether to check now: after each step where that costs nothing, and after some steps on a GPU."""
        return self._first_bad.device.type == "cpu" or self.steps % STEPS_BETWEEN_CHECKS == 0

    def check(self, epoch: int, rate: float) -> None:
        """Wait for the device, and stop the training at a non-finite loss.

        Args:
            epoch: number of the epoch, from 0.
            rate: learning rate of the last step.

        Raises:
            InputError: a non-finite loss, with its batch and what to change.
        """
        bad = int(self._first_bad)
        if bad >= 0:
            step = self.steps - len(self._unchecked) + bad + 1
            names = ", ".join(self.source.name(row) for row in self._unchecked[bad].tolist())
            raise InputError(
                f"the training loss became {float(self.total)} in epoch {epoch + 1} at learning rate {rate:.3g}, "
                f"in step {step}, whose batch begins with {names}; lower training.optimizer.lr, set "
                "training.clip_grad_norm to 1, or use encoder.precision fp32"
            )
        self._unchecked = []


class TrainingState:
    """Everything that a training needs to resume after any step: weights, averages, optimizer, random numbers, history.

    Args:
        objective: what is trained, with all that its loss and regularizers remember.
        average: moving average of the head, if any.
        optimizer: over what is trained.
        source: the training features.
        folder: takes checkpoint.pt and metrics.jsonl.
        group: the processes that train together.
        local_random: this process's own random numbers, if it has any.

    Attributes:
        epoch: finished epochs.
        history: what is recorded of each finished epoch.
        seconds: training time of the finished epochs, over all sessions.
        images: images seen in the finished epochs.
    """

    def __init__(
        self,
        objective: Objective,
        average: Ema | None,
        optimizer: torch.optim.Optimizer,
        source: Source,
        folder: Path,
        group: ProcessGroup,
        local_random: LocalRandom | None = None,
    ) -> None:
        self.objective = objective
        self.average = average
        self.optimizer = optimizer
        self.checkpoint = folder / CHECKPOINT_FILE
        self.metrics = folder / HISTORY_FILE
        self.group = group
        self.local_random = local_random
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.images = 0
        self.loss = EpochLoss(source)
        self._earlier_seconds = 0.0  # of this epoch, in earlier sessions
        self._start = 0.0  # of this epoch, in this session
        self._saved_random: dict[str, Any] | None = None  # to restore when the epoch in progress begins

    @property
    def step(self) -> int:
        """Finished steps of the epoch in progress."""
        return self.loss.steps

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one; process 0 reads it for all."""
        state = self.group.broadcast(load_checkpoint(self.checkpoint) if self.group.is_main else None)
        if state is None or "random" not in state:  # none, or one of an earlier version
            return
        load_module_state(self.objective, state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.history, self.seconds, self.images = state["history"], state["seconds"], state["images"]
        self.epoch, self.loss.steps, self.loss.images = int(state["epoch"]), int(state["step"]), int(state["seen"])
        self.loss.total, self._earlier_seconds = state["total"], state["spent"]
        self._saved_random = state["random"]
        set_random_state(self._saved_random["shared"])
        note(f"resuming after epoch {self.epoch}" + (f" and {self.step} steps of the next" if self.step else ""))

    def begin_epoch(self) -> None:
        """Call before the first step of an epoch in this session, when its batches and its objective are ready."""
        self._start = time.monotonic()
        if self._saved_random is None:
            return
        set_random_state(self._saved_random["shared"])
        if self.step:
            set_generator_states(self.objective, self._saved_random["generators"])
        local = self._saved_random["own"]
        if self.local_random is not None and len(local) == self.group.size:
            self.local_random.state = local[self.group.rank]
        self._saved_random = None

    def add_step(self, losses: list[Tensor], parts: list[Tensor]) -> None:
        """Count a step, with the loss and the rows of each part of its batch.

        Raises:
            InputError: a non-finite loss.
        """
        self.loss.add(losses, parts)
        if self.loss.check_is_due:
            self.loss.check(self.epoch, self.rate)

    def end_epoch(self) -> None:
        """Record a finished epoch.

        Raises:
            InputError: a non-finite loss.
        """
        self.loss.check(self.epoch, self.rate)
        seconds = self._earlier_seconds + time.monotonic() - self._start
        self.seconds += seconds
        self.images += self.loss.images
        mean = float(self.loss.total) / self.loss.images
        self.history.append({"epoch": self.epoch + 1, "loss": mean, "lr": self.rate, "seconds": round(seconds, 3)})
        self.epoch, self._earlier_seconds = self.epoch + 1, 0.0
        self.loss.reset()

    def save(self) -> None:
        """Write a checkpoint; all processes take part, and process 0 writes."""
        self.loss.check(self.epoch, self.rate)
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "seen": self.loss.images,
            "total": self.loss.total,
            "spent": self._earlier_seconds + time.monotonic() - self._start if self.step else 0.0,
            "objective": full_state(self.objective.state_dict()),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": full_state(self.optimizer.state_dict()),
            "random": {
                "shared": random_state(),
                "own": self.group.collect(self.local_random.state if self.local_random is not None else None),
                "generators": generator_states(self.objective),
            },
            "history": self.history,
            "seconds": self.seconds,
            "images": self.images,
        }
        if self.group.is_main:
            save_checkpoint(self.checkpoint, state)
            self.write_history()

    def write_history(self) -> None:
        """Write metrics.jsonl, a line per finished epoch; process 0 writes."""
        if self.group.is_main:
            write_text(self.metrics, "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in self.history))
