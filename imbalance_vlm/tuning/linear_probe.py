"""Linear probe: the head is trained on frozen features."""

from __future__ import annotations

from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.tuning.base import Tuning, TuningContext
from imbalance_vlm.tuning.crops import CachedCrops


class LinearProbe(Tuning):
    """Trains the head alone; both towers are frozen, so that features are computed once.

    Args:
        crops: views of the training images.
    """

    def __init__(self, *, crops: CachedCrops = CachedCrops(views=0, min_scale=0.5)) -> None:
        self.crops = crops

    def transforms(self, context: TuningContext) -> list[View]:
        return self.crops.transforms(context)
