"""Interface of a second stage: a classifier of embeddings, fitted after the first stage has been trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.components.ranges import Count, Positive
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail

ROWS = 1024
"""Embeddings per batch where the batch size does not affect the result."""

MakeSampler = Callable[[Tensor, int], Sampler]
"""(N,) training labels and the seed of the run -> the sampler."""


@dataclass(frozen=True, kw_only=True)
class StageTraining(SettingGroup):
    """How a second stage is trained.

    Args:
        epochs: passes, each as long as the training set.
        lr: peak learning rate.
        batch_size: embeddings per step.
    """

    epochs: Count = 10
    lr: Positive = 0.1
    batch_size: Count = 256


class TrainClassifier(Protocol):
    """Trains a module from embeddings (B, d) to logits (B, C) on the stage's training embeddings, in place."""

    def __call__(
        self, module: nn.Module, criterion: Loss, make_sampler: MakeSampler, training: StageTraining
    ) -> None: ...


@dataclass(frozen=True)
class Stage:
    """What a second stage is fitted on.

    Args:
        head: the trained head, frozen and in evaluation mode.
        train: embeddings (B, d) of the training set, as the head's classifier reads them.
        validation: embeddings of the validation set; None if the dataset has none.
        long_tail: the training counts.
        train_classifier: the training loop, seeded by the run: SGD with momentum .9 and a cosine schedule.
        test_views: embeddings of two random views of the test images, (N, d) each, without labels.
    """

    head: Head
    train: Source
    validation: Source | None
    long_tail: LongTail
    train_classifier: TrainClassifier
    test_views: Callable[[], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def weight(self) -> Tensor:
        """(C, d) of the first stage's classifier, a copy."""
        return self.head.classifier()[0].detach().clone()

    @torch.no_grad()
    def bias(self) -> Tensor:
        """(C,) of the first stage's classifier, a copy; zeros if it has none."""
        weight, bias = self.head.classifier()
        return weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()


def batches_in_order(source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings (B, d) and labels (B,) of a whole source, row by row."""
    return source.batches(torch.arange(len(source)).split(ROWS))


class SecondStage(nn.Module):
    """Embeddings (B, d) to logits (B, C).

    A subclass learns in `fit`. Everything learned is a parameter or a buffer, so that a new instance is restored from a
    state_dict.

    Args:
        width: d.
        num_classes: C.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.width = width
        self.num_classes = num_classes

    @property
    def needs_validation(self) -> bool:
        """Whether a setting is left open, to be chosen on the validation set."""
        return False

    def fit(self, stage: Stage) -> dict[str, float]:
        """Fit to a stage; return the numbers to report, such as a setting chosen on the validation set, by name."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor) -> Tensor:
        raise NotImplementedError


class FrozenClassifierStage(SecondStage):
    """Base class of second stages that change the logits of the first stage's classifier, which they keep frozen."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))

    def copy_classifier(self, stage: Stage) -> None:
        """Copy the first stage's classifier into the buffers."""
        self.weight.copy_(stage.weight())
        self.bias.copy_(stage.bias())

    def frozen_logits(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of the first stage's classifier for embeddings (B, d)."""
        return F.linear(embeddings, self.weight, self.bias)
