"""A post-hoc correction that chooses its setting on the validation set."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.balancing.selection import best, class_mean_accuracy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail

PENALTIES = (0.0, 0.5, 1.0, 2.0)


class ManyPenalty(PostHoc):
    """Subtracts a number from the logits of the classes with many training images.

    Args:
        long_tail: training counts and groups.
        penalty: the number; null chooses 0, 0.5, 1 or 2 on the validation set, of ties the smallest.
    """

    many: Tensor
    chosen: Tensor

    def __init__(self, long_tail: LongTail, *, penalty: NonNegative | None = None) -> None:
        super().__init__(long_tail)
        self.penalty = penalty
        many = torch.zeros(long_tail.num_classes)
        many[torch.as_tensor(long_tail.groups["many"])] = 1
        self.register_buffer("many", many)  # (C,) 1 for a class with many images
        self.register_buffer("chosen", torch.tensor(0.0 if penalty is None else penalty))

    @property
    def needs_validation(self) -> bool:
        return self.penalty is None

    @torch.no_grad()
    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        if not self.needs_validation:
            return {}
        if logits is None or labels is None:
            raise InputError("`penalty` must be a number where there is no validation set to choose it on, got null")
        penalty = best(PENALTIES, lambda value: class_mean_accuracy(logits - value * self.many, labels))
        self.chosen.fill_(penalty)
        return {"penalty": penalty}

    def forward(self, logits: Tensor) -> Tensor:
        return logits - self.chosen * self.many
