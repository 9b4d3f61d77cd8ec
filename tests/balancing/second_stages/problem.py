"""A long tail of Gaussians with a trained head, on which the tests fit second stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.balancing.second_stages.base import MakeSampler, SecondStage, Stage, StageTraining
from imbalance_vlm.components.settings import grouped
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.base import Head

COUNTS = (400, 150, 60, 25, 10, 5)
WIDTH = 8


class PlainHead(Head):
    """A linear classifier of the features as they are."""

    def __init__(self, width: int, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(width, num_classes, bias=bias)

    def embed(self, features: Tensor) -> Tensor:
        return features

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.layer.weight, self.layer.bias


@dataclass(frozen=True)
class Call:
    """The arguments of a training."""

    criterion: Loss
    sampler: Sampler
    training: StageTraining


@dataclass
class Loop:
    """A simple training loop that records its calls: SGD with momentum .9 and a cosine schedule."""

    source: FeatureSource
    seed: int = 0
    calls: list[Call] = field(default_factory=list)

    def __call__(self, module: nn.Module, criterion: Loss, make_sampler: MakeSampler, training: StageTraining) -> None:
        sampler = make_sampler(self.source.labels, self.seed)
        self.calls.append(Call(criterion, sampler, training))
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=training.lr, momentum=0.9)
        steps = training.epochs * math.ceil(len(self.source) / training.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(training.epochs):
            criterion.on_epoch(epoch, training.epochs)
            rows = sampler.epoch(epoch, training.epochs).split(training.batch_size)
            for embeddings, targets in self.source.batches(rows, epoch):
                optimizer.zero_grad()
                criterion(module(embeddings), targets, embeddings).backward()
                optimizer.step()
                schedule.step()


def no_views() -> tuple[Tensor, Tensor]:
    raise AssertionError("this second stage must not read the test images")


def draws(counts: Sequence[int], seed: int, offset: float = 0.0) -> FeatureSource:
    """Draws from overlapping Gaussians, which are the same for every seed: `counts` of each."""
    means = 0.9 * np.random.default_rng(0).normal(size=(len(counts), WIDTH))
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng([1, seed]).normal(size=(len(labels), WIDTH))
    return FeatureSource([(means[labels] + noise + offset).astype(np.float32)], labels, torch.device("cpu"))


def stage_on(source: FeatureSource, head: Head, validation: FeatureSource | None = None) -> Stage:
    counts = torch.bincount(source.labels, minlength=len(head.classifier()[0])).numpy()
    long_tail = LongTail(counts, allow_empty=True)
    return Stage(head.eval().requires_grad_(False), source, validation, long_tail, Loop(source), no_views)


def fitted(build: Callable[..., SecondStage], stage: Stage, seed: int = 0, **settings: Any) -> SecondStage:
    second = build(WIDTH, stage.long_tail.num_classes, **grouped(build, settings))
    torch.manual_seed(seed)
    second.fit(stage)
    return second


def loop_of(stage: Stage) -> Loop:
    assert isinstance(stage.train_classifier, Loop)
    return stage.train_classifier


def rows_of(source: Any) -> list[list[float]]:
    return [row for embeddings, _ in source.batches([torch.arange(len(source))]) for row in embeddings.tolist()]


TEST = draws([100] * len(COUNTS), seed=2)
"""A balanced test set."""
EMBEDDINGS = next(TEST.batches([torch.arange(0, 600, 60)]))[0]  # (10, d), of all classes
