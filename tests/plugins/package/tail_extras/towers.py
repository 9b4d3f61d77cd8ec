"""A parameter-efficient method."""

from __future__ import annotations

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import norms


class NormScale(TowerMethod):
    """Trains the weights of the last layer norms.

    Args:
        last: how many of them.
    """

    name = "norm_scale"

    def __init__(self, *, last: Count = 2) -> None:
        self.last = last

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        wanted = {f"{name}.weight" for name, _ in list(norms(tuned.root))[-self.last :]}
        tuned.select(wanted.__contains__, "a tower with layer norms")
