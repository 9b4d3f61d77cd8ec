"""Interface of a regularizer: a weighted term added to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutputs:
    """The outputs of a training step that regularizers and gradient transforms read.

    Args:
        embeddings: (N, d), the inputs of the classifier.
        targets: (N,) labels.
        logits: (N, C).
        text: (C, d) unit text features that are being learned; None for a head that learns none.
        frozen_text: (C, d) unit text features of the frozen text tower; None where there are none.
    """

    embeddings: Tensor
    targets: Tensor
    logits: Tensor
    text: Tensor | None = None
    frozen_text: Tensor | None = None


class RunText(Protocol):
    """The text side of a run that learns text features: what a run offers to constructors as `text`."""

    @property
    def class_names(self) -> Sequence[str]:
        """(C,) names of the trained classes."""

    @property
    def novel_names(self) -> Sequence[str]:
        """Names of classes that are tested but not trained; empty if there are none."""

    @property
    def templates(self) -> Sequence[str]:
        """Sentences of the dataset, with one `{}` each."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    def frozen(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(M, d) unit text features of the frozen tower, averaged over the templates."""

    def learned(self, names: Sequence[str]) -> Callable[[], Tensor]:
        """A function that computes the text features (M, d) of these names under the current prompt."""

    def fitting(self, names: Sequence[str]) -> list[str]:
        """The names whose prompts are short enough for the text tower."""


class Regularizer(nn.Module):
    """A scalar term of a training step; state kept between steps is a buffer.

    A subclass implements `forward(outputs) -> ()` without the weight, which the objective applies.

    Args:
        weight: factor of the term in the objective.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: StepOutputs) -> Tensor:
        raise NotImplementedError

    def gather(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """Called before `forward` if each process ran the head on a part of the batch only.

        A regularizer that holds one row per sample, apart from the step's outputs, replaces it by `gather_rows(rows)`,
        which returns the rows of the whole batch.
        """
