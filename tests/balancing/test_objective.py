"""The objective in the training loop: the calls of the loss, resuming, and deferred weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.training.loop import steps_per_epoch, train
from imbalance_vlm.training.schedules import constant
from imbalance_vlm.training.settings import TrainingSettings

LABELS = np.array([0] * 12 + [1] * 5 + [2] * 2)
FEATURES = np.random.default_rng(0).normal(size=(len(LABELS), 4)).astype(np.float32)


def trained(folder: Path, loss: Loss, sampler: str = "instance", **settings: Any) -> Tensor:
    """Weights of a linear layer after four epochs."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    head = LinearHead(4, 3, normalise=False)
    source = FeatureSource([FEATURES], LABELS, torch.device("cpu"))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    plan = TrainingSettings(**{"epochs": 4, "batch_size": 8, "checkpoint_seconds": 0.0} | settings)
    schedule = constant(plan.epochs, steps_per_epoch(source, plan.batch_size))
    made_sampler: Sampler = catalogue.SAMPLERS.get(sampler).load()(source.labels, 0)
    train(Objective(head, loss), source, made_sampler, optimizer, schedule, folder, settings=plan)
    return head.layer.weight.detach()


class RecordingLoss(Loss):
    """Cross-entropy that records its calls: the arguments of `on_epoch` and the sizes of batches."""

    def __init__(self, stop_before: int | None = None) -> None:
        super().__init__(LongTail(np.bincount(LABELS)))
        self.notes: list[Any] = []
        self.stop_before = stop_before

    def on_epoch(self, epoch: int, epochs: int) -> None:
        if epoch == self.stop_before:
            raise KeyboardInterrupt
        self.notes.append((epoch, epochs))

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.notes.append(len(targets))
        return nn.functional.cross_entropy(logits, targets, reduction="none")


def test_on_epoch_is_called_before_the_first_batch_of_each_epoch(tmp_path: Path) -> None:
    recorder = RecordingLoss()
    trained(tmp_path / "run", recorder)
    assert recorder.notes == [item for epoch in range(4) for item in ((epoch, 4), 8, 8, 3)]


def test_on_epoch_of_a_resumed_run_starts_with_its_epoch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", RecordingLoss(stop_before=2))
    recorder = RecordingLoss()
    trained(tmp_path / "run", recorder)
    assert recorder.notes[0] == (2, 4)


def test_deferred_weights_change_the_second_half_only(tmp_path: Path) -> None:
    """defer 0.5 of 4 epochs: after 2 epochs the run is that of cross-entropy, after 4 it is not."""

    def after(epochs: int, loss: Loss, folder: str) -> Tensor:
        if epochs == 2:  # the same plan of 4 epochs, cut off
            on_epoch = loss.on_epoch
            loss.on_epoch = lambda epoch, _: on_epoch(epoch, 4)  # type: ignore[method-assign]
        return trained(tmp_path / folder, loss, epochs=epochs)

    counts = np.bincount(LABELS)
    deferred = {epochs: after(epochs, create_loss("weighted", counts, defer=0.5), f"d{epochs}") for epochs in (2, 4)}
    plain = {epochs: after(epochs, create_loss("cross_entropy", counts), f"p{epochs}") for epochs in (2, 4)}
    assert torch.equal(deferred[2], plain[2])
    assert not torch.allclose(deferred[4], plain[4])


@pytest.mark.parametrize("sampler", catalogue.SAMPLERS.names())
def test_training_set_smaller_than_a_batch_is_trained_on(sampler: str, tmp_path: Path) -> None:
    recorder = RecordingLoss()
    trained(tmp_path / "run", recorder, sampler, batch_size=512)
    assert [item for item in recorder.notes if isinstance(item, int)] == [len(LABELS)] * 4
