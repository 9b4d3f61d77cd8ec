"""Partial fine-tuning: the last blocks and what follows them."""

from __future__ import annotations

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.errors import InputError
from imbalance_vlm.tuning.peft.base import Method, Tuned
from imbalance_vlm.tuning.peft.towers import after_stages, beyond_features, stages


class Partial(Method):
    """The last blocks of a transformer, or the last stages of another net, and the norms after them.

    Args:
        last: how many of them.
    """

    name = "partial"

    def __init__(self, *, last: Count = 1) -> None:
        self.last = last

    def inject(self, tuned: Tuned, num_classes: int) -> None:
        there = stages(tuned.root)
        if self.last > len(there):
            raise InputError(
                f"`last` must be at most {len(there)}, the blocks or stages of the {type(tuned.root).__name__}, got "
                f"{self.last}"
            )
        chosen = tuple(f"{name}." for name in (*there[-self.last :], *after_stages(tuned.root)))
        outside = beyond_features(tuned.root)
        tuned.select(lambda name: name.startswith(chosen) and name not in outside, "stages with parameters")
