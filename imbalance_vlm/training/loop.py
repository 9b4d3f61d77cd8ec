"""The training loop, for cached features and for images alike."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.components.ranges import Count, NonNegative, Part, Positive, Share
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_text
from imbalance_vlm.progress import bar, note
from imbalance_vlm.training.averaging import Ema, interpolate
from imbalance_vlm.training.checkpoints import load_checkpoint, save_checkpoint
from imbalance_vlm.training.devices import (
    Devices,
    LocalRandom,
    clip_gradient,
    current,
    generator_states,
    is_sharded,
    launched,
    load_optimizer,
    load_whole,
    random_state,
    set_generator_states,
    set_random_state,
    start,
    whole,
)

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler


AfterEpoch = Callable[[int], dict[str, float]]

LOOK_EVERY = 50
"""Steps between looks at whether the loss is still a number, on a device that a look makes wait."""
AGREE_EVERY = 16
"""Steps between questions to process 0 whether a checkpoint is due, where there are several processes."""
NAMED = 5
"""Images of a batch that an error names."""
WRITING_SHARE = 20
"""Training goes on for at least this many times as long as the last checkpoint took to write."""


@dataclass(frozen=True)
class Trained:
    """What training cost: seconds in all sittings, and images seen a second; and what was noted of each epoch."""

    seconds: float
    images_per_second: float
    history: list[dict[str, Any]] = field(default_factory=list)


def steps_per_epoch(source: Source, batch_size: int) -> int:
    return math.ceil(len(source) / batch_size)


def train(
    objective: Objective,
    source: Source,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    schedule: Scheduler,
    folder: Path,
    after_epoch: AfterEpoch | None = None,
    stop_after: int | None = None,
    *,
    epochs: Count = 50,
    batch_size: Count = 512,
    accumulate: Count = 1,
    clip_grad_norm: Positive | None = None,
    ema: Share = 0.0,
    interpolation: Part = 1.0,
    compile: bool = False,
    shard: bool = False,
    checkpoint_seconds: NonNegative = 30.0,
) -> Trained:
    """Train the objective's head for `epochs` passes; the last epoch is the result, nothing is chosen on test data.

    A run that was killed goes on behind its last checkpoint and ends with the same numbers: the order of the data is a
    function of (seed, epoch), the rate one of the step, and the rest is in the checkpoint.

    Where several processes were started, they train together; see `imbalance_vlm.training.devices`. A gradient
    transform is no sum over samples: with one, every process computes every batch, which is exact and no faster.

    Args:
        objective: called with (features, targets), and told of each epoch before it begins.
        source: the training features.
        sampler: gives the rows of each epoch, in order.
        optimizer: over what is trained.
        schedule: sets its rate before each step.
        folder: takes checkpoint.pt while training runs, and metrics.jsonl.
        after_epoch: called with the number of each finished epoch, counted from 1; the numbers that it returns stand in
            that epoch's line of metrics.jsonl.
        stop_after: epochs after which to stop; the schedule and the sampler still see all of `epochs`. None for all.
        epochs: passes over the training set.
        batch_size: images to a step, over all devices; the last batch of an epoch may be smaller.
        accumulate: parts that a batch is computed in, one after the other, to save memory. The gradient is that of the
            whole batch, but a loss or regularizer that compares the samples of a batch compares those of a part.
        clip_grad_norm: largest norm of the gradient, or null.
        ema: decay of an exponential moving average of the head's weights, which is then the result; 0 for none.
        interpolation: the result is start + interpolation * (trained - start), as in WiSE-FT; 1 is what was trained.
        compile: runs the head (and the tower in it) through torch.compile, which takes minutes to begin with; where
            that is not possible the training says so and goes on without.
        shard: spreads the tower that is trained over the processes, for one that does not fit a device; the numbers are
            the same. Nothing in one process. Who calls this has done it (`imbalance_vlm.training.devices.shard`).
        checkpoint_seconds: time between checkpoints; one is written at the next step after it, or later where writing
            takes more than a twentieth of the time.

    Raises:
        InputError: a loss that is no number any more, with the batch and what to change; settings that do not go
            together.
    """
    if launched() > 1:
        start(source.labels.device.type)
    head = objective.head
    begin = {key: value.detach().clone() for key, value in head.state_dict().items()} if interpolation < 1 else {}
    average = Ema(head, ema) if ema else None
    step = _Step(objective, optimizer, current(), clip_grad_norm, compile)
    step.check(accumulate, average is not None or interpolation < 1, shard)
    run = _Run(objective, average, optimizer, source, folder, step.devices)
    trained = {name: parameter for name, parameter in head.named_parameters() if parameter.requires_grad}
    objective.gradient.start(trained)
    run.resume()
    steps = steps_per_epoch(source, batch_size)
    clock = _Clock(checkpoint_seconds, step.devices)
    last = min(stop_after or epochs, epochs)
    with bar(last, "train", "epoch", run.epoch) as progress:
        for epoch in range(run.epoch, last):
            plan = [_parts(rows, accumulate) for rows in sampler.epoch(epoch, epochs).split(batch_size)]
            ahead = plan[run.step :]  # all of it, but in the epoch in which a run is taken up again
            batches = source.batches([step.own(rows) for parts in ahead for rows in parts], epoch)
            objective.train()
            objective.on_epoch(epoch, epochs)
            run.begin(epoch)
            for number, parts in enumerate(ahead, start=run.step):
                schedule.step_update(epoch * steps + number)
                run.add(step(parts, batches), parts)
                if average is not None:
                    average.update(head)
                if number + 1 < len(plan) and clock.due(number):
                    clock.time(run.save)
            run.end()
            if after_epoch is not None:
                run.history[-1] |= after_epoch(epoch + 1)
            if epoch + 1 < last and clock.due():
                clock.time(run.save)
            progress.update()
    if average is not None:
        head.load_state_dict(average.state())
    if interpolation < 1:
        head.load_state_dict(interpolate(begin, head.state_dict(), interpolation))
    run.write_history()  # the checkpoint stays until the result is on the disk
    return Trained(run.seconds, run.images / max(run.seconds, 1e-9), run.history)


def _parts(rows: Tensor, accumulate: int) -> list[Tensor]:
    """A batch in as many parts, of which none is empty."""
    return list(rows.tensor_split(min(accumulate, len(rows)))) if accumulate > 1 else [rows]


class _Step:
    """A step of the optimizer: forward and backward of each part of a batch, over all processes."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        devices: Devices,
        clip_grad_norm: float | None,
        compile: bool,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm
        self.plain_gradient = type(objective.gradient) is Gradient
        self.devices = devices
        self.spread = devices.size > 1 and self.plain_gradient
        if self.spread:
            devices.random = LocalRandom(devices.rank)
        self.outputs = _Compiled(objective.outputs) if compile else objective.outputs
        self.whole = not self.spread and not compile
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(map(is_sharded, self.parameters)):
            for group in optimizer.param_groups:  # torch's kernels over lists of tensors take one kind at a time
                group["foreach"] = False

    def check(self, accumulate: int, averages: bool, shard: bool) -> None:
        """Refuse what would not be what the settings say."""
        if accumulate > 1 and not self.plain_gradient:
            transform = type(self.objective.gradient).__name__
            raise InputError(
                f"`training.accumulate` must be 1 with a gradient transform ({transform}), which reads the gradient of "
                f"a whole batch, got {accumulate}"
            )
        sharded = any(map(is_sharded, self.parameters))
        if shard and self.devices.size > 1 and not sharded:
            raise InputError(
                "`training.shard` must be false where no tower is trained that is spread over the processes, got true"
            )
        if sharded and not self.plain_gradient:
            raise InputError(
                f"`training.shard` must be false with a gradient transform ({type(self.objective.gradient).__name__}), "
                "which needs every gradient in one piece, got true"
            )
        if averages and sharded:
            raise InputError(
                "`training.ema` and `training.interpolation` need the weights in one piece, got a tower that is spread "
                "over the processes; set them to 0 and 1, or leave out sharding"
            )

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows of a part of a batch."""
        return self.devices.part(rows) if self.spread else rows

    def __call__(self, parts: list[Tensor], batches: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The loss of each part, on the device; nothing here waits for it."""
        objective, size = self.objective, sum(map(len, parts))
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for rows, (features, targets) in zip(parts, batches, strict=False):
            loss = objective(features, targets) if self.whole else self._value(features, targets, len(rows))
            objective.backward(loss if len(parts) == 1 else loss * (len(rows) / size))
            losses.append(loss.detach().float())
        if self.spread:
            self.devices.average(self.parameters)
        if self.clip_grad_norm is not None:
            clip_gradient(objective.head.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        objective.gradient.after_step()
        return losses

    def _value(self, features: Tensor, targets: Tensor, count: int) -> Tensor:
        """The loss of a part of a batch of `count` samples, of which this process has its own."""
        devices = self.devices if self.spread else Devices()
        with devices.own_part():
            embeddings, logits = self.outputs(features)
        every = [devices.gather(own, count) for own in (embeddings, logits, targets)]
        self.objective.gather(lambda own: devices.gather(own, count))
        return self.objective.value(*every)


class _Compiled:
    """A function through torch.compile; as it is, from the first time on that it cannot be compiled."""

    def __init__(self, plain: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.plain = plain
        self.fast: Callable[[Tensor], tuple[Tensor, Tensor]] | None = torch.compile(plain)

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        from torch._dynamo.exc import TorchDynamoException

        if self.fast is not None:
            try:
                return self.fast(features)
            except TorchDynamoException as error:
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                note(f"training.compile: going on without torch.compile, {type(error).__name__}: {reason}")
                self.fast = None
        return self.plain(features)


class _Clock:
    """Says when a checkpoint is due; all processes hear the same."""

    def __init__(self, seconds: float, devices: Devices) -> None:
        self.seconds = self.wait = seconds
        self.devices = devices
        self.last = time.monotonic()

    def due(self, step: int | None = None) -> bool:
        """Whether it is time, behind a step or an epoch."""
        alone = self.devices.size == 1
        if not alone and step is not None and step % AGREE_EVERY != AGREE_EVERY - 1:
            return False
        return bool(self.devices.same(time.monotonic() - self.last >= self.wait))

    def time(self, save: Callable[[], None]) -> None:
        begun = time.monotonic()
        save()
        self.last = time.monotonic()
        if self.seconds > 0:
            self.wait = max(self.seconds, WRITING_SHARE * (self.last - begun))


class _Run:
    """The state of a training that can be put down and taken up again, at any step.

    Attributes:
        epoch, step: how much is done; of the epoch under way, `step` steps.
    """

    def __init__(
        self,
        objective: Objective,
        average: Ema | None,
        optimizer: torch.optim.Optimizer,
        source: Source,
        folder: Path,
        devices: Devices,
    ) -> None:
        self.objective = objective
        self.average = average
        self.optimizer = optimizer
        self.source = source
        self.checkpoint = folder / "checkpoint.pt"
        self.metrics = folder / "metrics.jsonl"
        self.devices = devices
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.images = 0
        self.epoch = 0
        self.step = 0
        self.seen = 0  # images in this epoch
        self.total = torch.zeros(())  # sum of their losses
        self.spent = 0.0  # seconds in this epoch, in earlier sittings
        self.begun = 0.0
        self.bad = torch.tensor(-1)  # the first step of this epoch with a loss that is no number
        self.rows: list[Tensor] = []  # of the steps that have not been looked at
        self._random: dict[str, Any] | None = None  # to go on with, in the middle of an epoch

    def resume(self) -> None:
        """Go on behind the checkpoint, if there is one; process 0 reads it for all."""
        state = self.devices.same(load_checkpoint(self.checkpoint) if self.devices.main else None)
        if state is None or "random" not in state:  # none, or one of an earlier version
            return
        load_whole(self.objective, state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.history, self.seconds, self.images = state["history"], state["seconds"], state["images"]
        self.epoch, self.step, self.seen = int(state["epoch"]), int(state["step"]), int(state["seen"])
        self.total, self.spent = state["total"], state["spent"]
        self._random = state["random"]
        set_random_state(self._random["shared"])
        note(f"resuming behind epoch {self.epoch}" + (f" and {self.step} steps of the next" if self.step else ""))

    def begin(self, epoch: int) -> None:
        """Told that the steps of an epoch follow, when all that prepares them is done."""
        self.epoch, self.begun = epoch, time.monotonic()
        if self._random is None:
            return
        set_random_state(self._random["shared"])
        if self.step:
            set_generator_states(self.objective, self._random["generators"])
        own = self._random["own"]
        if self.devices.random is not None and len(own) == self.devices.size:
            self.devices.random.state = own[self.devices.rank]
        self._random = None

    def add(self, losses: list[Tensor], parts: list[Tensor]) -> None:
        """Count a step, with the loss of each part of its batch."""
        for loss, rows in zip(losses, parts, strict=True):
            self.total = self.total.to(loss.device) + loss * len(rows)
            self.seen += len(rows)
        finite = torch.stack(losses).isfinite().all() if len(losses) > 1 else losses[0].isfinite()
        number = len(self.rows)
        self.rows.append(torch.cat(parts)[:NAMED] if len(parts) > 1 else parts[0][:NAMED])
        self.bad = torch.where(finite | (self.bad.to(finite.device) >= 0), self.bad.to(finite.device), number)
        self.step += 1
        if finite.device.type == "cpu" or self.step % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        """Wait for the device, and stop when a loss was no number.

        Raises:
            InputError: with the batch, and what to change.
        """
        bad = int(self.bad)
        if bad >= 0:
            step = self.step - len(self.rows) + bad + 1
            rate = self.optimizer.param_groups[0]["lr"]
            names = ", ".join(self.source.name(row) for row in self.rows[bad].tolist())
            raise InputError(
                f"the training loss became {float(self.total)} in epoch {self.epoch + 1} at learning rate {rate:.3g}, "
                f"in step {step}, whose batch begins with {names}; lower training.optimizer.lr, set "
                "training.clip_grad_norm to 1, or use encoder.precision fp32"
            )
        self.rows = []

    def end(self) -> None:
        """Count an epoch."""
        self.look()
        loss, seconds = float(self.total) / self.seen, self.spent + time.monotonic() - self.begun
        self.seconds += seconds
        self.images += self.seen
        rate = self.optimizer.param_groups[0]["lr"]
        self.history.append({"epoch": self.epoch + 1, "loss": loss, "lr": rate, "seconds": round(seconds, 3)})
        self.epoch, self.step, self.seen, self.spent, self.total = self.epoch + 1, 0, 0, 0.0, torch.zeros(())

    def save(self) -> None:
        """Write a checkpoint; all processes take part, and process 0 writes."""
        self.look()
        own = self.devices.random.state if self.devices.random is not None else None
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "seen": self.seen,
            "total": self.total,
            "spent": self.spent + time.monotonic() - self.begun if self.step else 0.0,
            "objective": whole(self.objective.state_dict()),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": whole(self.optimizer.state_dict()),
            "random": {
                "shared": random_state(),
                "own": self.devices.collect(own),
                "generators": generator_states(self.objective),
            },
            "history": self.history,
            "seconds": self.seconds,
            "images": self.images,
        }
        if self.devices.main:
            save_checkpoint(self.checkpoint, state)
            self.write_history()

    def write_history(self) -> None:
        if self.devices.main:
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in self.history))
