"""Partial fine-tuning: the last blocks and the layers after them are trained."""

from __future__ import annotations

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.errors import InputError
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import after_stages, beyond_features, stages


class Partial(TowerMethod):
    """Trains the last blocks of a transformer, or the last stages of another network, and the norms after them.

    Args:
        last: number of blocks or stages.
    """

    name = "partial"

    def __init__(self, *, last: Count = 1) -> None:
        self.last = last

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        names = stages(tuned.root)
        if self.last > len(names):
            raise InputError(
                f"`last` must be at most {len(names)}, the number of blocks or stages of the "
                f"{type(tuned.root).__name__}, got {self.last}"
            )
        trained = tuple(f"{name}." for name in (*names[-self.last :], *after_stages(tuned.root)))
        outside = beyond_features(tuned.root)
        tuned.select(lambda name: name.startswith(trained) and name not in outside, "stages with parameters")
