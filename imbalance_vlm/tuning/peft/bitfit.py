"""BitFit: only the biases are trained.

[0] Ben Zaken, Goldberg, Ravfogel. BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models. ACL 2022.

All biases of the tower are trained, including those of the norms.
"""

from __future__ import annotations

from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import beyond_features


class BitFit(TowerMethod):
    """Trains the biases of the tower."""

    name = "bitfit"

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        outside = beyond_features(tuned.root)
        tuned.select(lambda name: name.endswith("bias") and name not in outside, "a tower with biases")
