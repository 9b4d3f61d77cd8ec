"""What every regularizer is: a term beside the loss, with a weight of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """What a regularizer sees of a training step.

    Args:
        embeddings: (N, d) what the classifier reads.
        targets: (N,) labels.
        logits: (N, C).
        text: (C, d) unit text features that are being learned; None where no text is.
        frozen_text: (C, d) unit text features of the untouched text tower; None where there are none.
    """

    embeddings: Tensor
    targets: Tensor
    logits: Tensor
    text: Tensor | None = None
    frozen_text: Tensor | None = None


class Regularizer(nn.Module):
    """A scalar term of a training step; what it remembers between steps is a buffer.

    A subclass writes `forward(seen) -> ()`, without its weight: the objective multiplies.

    Args:
        weight: of the term beside the loss.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, seen: Seen) -> Tensor:
        raise NotImplementedError

    def gather(self, together: Callable[[Tensor], Tensor]) -> None:
        """Called before `forward` where the head ran on this process's part of the batch alone: what a term keeps for
        each of its samples beside the outputs, `together` makes that of the whole batch of."""
