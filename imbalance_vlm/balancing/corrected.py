"""A trained head with its corrections: a second stage in place of its classifier, a post-hoc change of the logits."""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.balancing.second_stages.base import SecondStage
from imbalance_vlm.heads.base import Head


class CorrectedClassifier(nn.Module):
    """Features (B, ...) to logits (B, C): post_hoc(second_stage(head.embed(features))).

    Args:
        head: the first stage.
        second_stage: classifies the head's embeddings; None keeps the head's own classifier.
        post_hoc: corrects the logits; None leaves them unchanged.
    """

    def __init__(self, head: Head, second_stage: SecondStage | None = None, post_hoc: PostHoc | None = None) -> None:
        super().__init__()
        self.head = head
        self.second_stage = second_stage
        self.post_hoc = post_hoc

    @property
    def plain(self) -> bool:
        """Whether this is the head alone."""
        return self.second_stage is None and self.post_hoc is None

    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, C) of embeddings (B, d), before the post-hoc correction."""
        logits: Tensor = self.head.classify(embeddings) if self.second_stage is None else self.second_stage(embeddings)
        return logits

    def forward(self, features: Tensor) -> Tensor:
        logits = self.logits(self.head.embed(features))
        return logits if self.post_hoc is None else self.post_hoc(logits)
