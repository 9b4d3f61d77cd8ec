"""A tiny training that the tests of the loop and of its state share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.balancing.samplers.class_balanced import ClassBalancedSampler
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.training.loop import Trained, steps_per_epoch, train
from imbalance_vlm.training.schedules import cosine
from imbalance_vlm.training.settings import TrainingSettings

LABELS = np.array([0] * 12 + [1] * 5 + [2] * 2)  # 19: batches of 8, 8 and 3
FEATURES = np.random.default_rng(0).normal(size=(len(LABELS), 4)).astype(np.float32)
SETTINGS = {"ldam": {"head_scale": 1.0}, "gaussian_clouded": {"head_scale": 1.0}}


class DropoutHead(LinearHead):
    """A linear head with dropout, from torch's global generator."""

    def embed(self, features: Tensor) -> Tensor:
        return nn.functional.dropout(super().embed(features), 0.5, self.training)


def sampler(labels: Tensor) -> Sampler:
    return ClassBalancedSampler(labels, 0)


def fit(
    folder: Path,
    loss: str | Loss = "cross_entropy",
    head: type[LinearHead] = LinearHead,
    stop_at: int | None = None,
    features: Any = FEATURES,
    gradient: Gradient | None = None,
    **settings: Any,
) -> tuple[Objective, Trained]:
    """Three epochs; KeyboardInterrupt before step `stop_at`."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    if isinstance(loss, str):
        loss = create_loss(loss, LongTail(np.bincount(LABELS)), **SETTINGS.get(loss, {}))
    objective = Objective(head(4, 3, normalise=False), loss, gradient=gradient)
    source = FeatureSource([features], LABELS, torch.device("cpu"), "image_{}.png".format)
    optimizer = torch.optim.AdamW(objective.head.parameters(), lr=0.05)
    plan = TrainingSettings(**{"epochs": 3, "batch_size": 8, "checkpoint_seconds": 0.0} | settings)
    schedule = cosine(plan.epochs, steps_per_epoch(source, 8))

    def interrupted_schedule(step: int, peak: float) -> float:
        if step == stop_at:
            raise KeyboardInterrupt
        return schedule(step, peak)

    return objective, train(
        objective, source, sampler(source.labels), optimizer, interrupted_schedule, folder, settings=plan
    )


def weights(folder: Path, *args: Any, **settings: Any) -> Tensor:
    return fit(folder, *args, **settings)[0].head.layer.weight.detach()


def losses(folder: Path) -> list[float]:
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
