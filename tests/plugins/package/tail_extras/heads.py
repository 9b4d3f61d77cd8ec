"""A head that learns an embedding."""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.heads.base import Head


class LowRankHead(Head):
    """W V f + b with a learned V of shape (r, w), (B, w) -> (B, C).

    Args:
        width: w.
        num_classes: C.
        rank: r, the width of the embedding.
    """

    def __init__(self, width: int, num_classes: int, *, rank: Count = 8) -> None:
        super().__init__()
        self.map = nn.Linear(width, rank, bias=False)
        self.layer = nn.Linear(rank, num_classes)

    @property
    def learns_embedding(self) -> bool:
        return True

    def embed(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.map(features)
        return embeddings

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.layer.weight, self.layer.bias
