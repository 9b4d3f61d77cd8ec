"""Zero-shot classification: nothing is trained, and the class names are the classifier."""

from __future__ import annotations

from torch import nn

from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Tuning


class ZeroShot(Tuning):
    """Trains no parameters."""

    trains = False

    def parameters(self, head: Head) -> list[nn.Parameter]:
        return []
