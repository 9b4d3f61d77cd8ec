"""The training loop, for cached features and for pictures alike."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_text
from imbalance_vlm.progress import bar, note
from imbalance_vlm.training.checkpoints import load_checkpoint, save_checkpoint
from imbalance_vlm.types import Count, NonNegative, Positive

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler


@dataclass(frozen=True)
class Trained:
    """What training cost: seconds in all sittings, and images seen a second."""

    seconds: float
    images_per_second: float


def steps_per_epoch(source: Source, batch_size: int) -> int:
    return math.ceil(len(source) / batch_size)


def train(
    head: nn.Module,
    criterion: Loss,
    source: Source,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    schedule: Scheduler,
    folder: Path,
    *,
    epochs: Count = 50,
    batch_size: Count = 512,
    clip_grad_norm: Positive | None = None,
    checkpoint_seconds: NonNegative = 30.0,
) -> Trained:
    """Train `head` for `epochs` passes; the last epoch is the result, nothing is chosen on test data.

    A run that was killed goes on behind its last checkpoint and ends with the same numbers: the order of the data is a
    function of (seed, epoch), the rate one of the step, and the rest is in the checkpoint.

    Args:
        head: features to logits.
        criterion: called with (logits, targets), and told of each epoch before it begins.
        source: the training features.
        sampler: gives the rows of each epoch, in order.
        optimizer: over what is trained.
        schedule: sets its rate before each step.
        folder: takes checkpoint.pt while training runs, and metrics.jsonl.
        epochs: passes over the training set.
        batch_size: images to a step, over all devices; the last batch of an epoch may be smaller.
        clip_grad_norm: largest norm of the gradient, or null.
        checkpoint_seconds: time between checkpoints, which are written at the end of an epoch.

    Raises:
        InputError: a loss that is no number any more, with what to change.
    """
    run = _Run(head, criterion, optimizer, folder / "checkpoint.pt", folder / "metrics.jsonl")
    first = run.resume()
    steps = steps_per_epoch(source, batch_size)
    saved = time.monotonic()
    with bar(epochs, "train", "epoch", first) as progress:
        for epoch in range(first, epochs):
            begun, total = time.monotonic(), torch.zeros(())
            rows = sampler.epoch(epoch, epochs).split(batch_size)
            head.train()
            criterion.on_epoch(epoch, epochs)
            for step, (features, targets) in enumerate(source.batches(rows, epoch), start=epoch * steps):
                schedule.step_update(step)
                loss = criterion(head(features), targets).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(head.parameters(), clip_grad_norm)
                optimizer.step()
                total = total.to(loss.device) + loss.detach().float() * len(targets)
            run.record(epoch, float(total) / sum(map(len, rows)), time.monotonic() - begun, sum(map(len, rows)))
            if time.monotonic() - saved >= checkpoint_seconds and epoch + 1 < epochs:
                run.save(epoch + 1)
                saved = time.monotonic()
            progress.update()
    run.write_history()  # the checkpoint stays until the result is on the disk
    return Trained(run.seconds, run.images / max(run.seconds, 1e-9))


class _Run:
    """The state of a training that can be put down and taken up again."""

    def __init__(
        self, head: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, metrics: Path
    ) -> None:
        self.head = head
        self.criterion = criterion
        self.optimizer = optimizer
        self.checkpoint = checkpoint
        self.metrics = metrics
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.images = 0

    def resume(self) -> int:
        """The epoch to go on with: 0, or what the checkpoint says."""
        state = load_checkpoint(self.checkpoint)
        if state is None:
            return 0
        self.head.load_state_dict(state["head"])
        self.criterion.load_state_dict(state["criterion"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.history, self.seconds, self.images = state["history"], state["seconds"], state["images"]
        note(f"resuming behind epoch {state['epoch']}")
        return int(state["epoch"])

    def record(self, epoch: int, loss: float, seconds: float, images: int) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        if not math.isfinite(loss):
            raise InputError(
                f"the training loss became {loss} in epoch {epoch + 1} at learning rate {rate:.3g}; "
                "lower training.optimizer.lr, set training.clip_grad_norm to 1, or use encoder.precision fp32"
            )
        self.seconds += seconds
        self.images += images
        self.history.append({"epoch": epoch + 1, "loss": loss, "lr": rate, "seconds": round(seconds, 3)})

    def save(self, next_epoch: int) -> None:
        state = {
            "epoch": next_epoch,
            "head": self.head.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "history": self.history,
            "seconds": self.seconds,
            "images": self.images,
        }
        save_checkpoint(self.checkpoint, state)
        self.write_history()

    def write_history(self) -> None:
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in self.history))
