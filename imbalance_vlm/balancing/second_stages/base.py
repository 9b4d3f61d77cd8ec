"""What every second stage is: a classifier of the first stage's embeddings, fitted when that stage is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail


class TrainClassifier(Protocol):
    """Trains a module from embeddings (B, d) to logits (B, C) on the stage's training embeddings, in place."""

    def __call__(
        self, module: nn.Module, criterion: Loss, sampler: str, *, epochs: int, lr: float, batch_size: int
    ) -> None: ...


@dataclass(frozen=True)
class Stage:
    """What a second stage is fitted on.

    Args:
        head: the trained head, frozen and out of training.
        train: embeddings (B, d) of the training set, as the head's classifier reads them.
        validation: likewise of the validation set; None where the dataset has none.
        tail: the training counts.
        train_classifier: the training loop, with the run's seed; SGD with momentum .9 and a cosine schedule.
        test_views: embeddings of two random views of the test images, (N, d) each, without labels.
    """

    head: Head
    train: Source
    validation: Source | None
    tail: LongTail
    train_classifier: TrainClassifier
    test_views: Callable[[], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def weight(self) -> Tensor:
        """(C, d) of the first stage's classifier, a copy."""
        return self.head.classifier()[0].detach().clone()

    @torch.no_grad()
    def bias(self) -> Tensor:
        """(C,) of the first stage's classifier, a copy; zeros where it has none."""
        weight, bias = self.head.classifier()
        return weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()


class SecondStage(nn.Module):
    """Embeddings (B, d) to logits (B, C).

    A subclass is made blank (its settings are keyword-only) and learns in `fit`; everything learned is a parameter or
    a buffer, so that a blank one and a state_dict give it back.

    Args:
        width: d.
        num_classes: C.
    """

    trains = False  # whether `fit` runs the training loop

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.width = width
        self.num_classes = num_classes

    @property
    def needs_validation(self) -> bool:
        """Whether these settings leave a choice to the validation set."""
        return False

    def fit(self, stage: Stage) -> dict[str, float]:
        """Learn from the stage; return what was chosen on the validation set, by the name of the setting."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor) -> Tensor:
        raise NotImplementedError
