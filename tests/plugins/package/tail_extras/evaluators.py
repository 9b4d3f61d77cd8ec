"""An evaluator with a column of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.evaluation.base import Column, Evaluator


class TopK(Evaluator):
    """The share of test images whose class is among the k best guesses, in percent: `top_<k>`.

    Args:
        k: number of guesses.
    """

    columns = (Column("top_2", digits=2, deviation=True),)

    @classmethod
    def columns_of(cls, settings: Mapping[str, Any]) -> tuple[Column, ...]:
        return (Column(f"top_{settings['k']}", digits=2, deviation=True),)

    def __init__(self, *, k: Count = 2) -> None:
        self.k = k
        self.correct = 0
        self.images = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        best = logits.topk(min(self.k, logits.shape[1]), dim=1).indices  # (B, k)
        self.correct += int((best == targets[:, None]).any(dim=1).sum())
        self.images += len(targets)

    def compute(self) -> Iterator[tuple[str, float]]:
        yield f"top_{self.k}", 100 * self.correct / max(self.images, 1)
