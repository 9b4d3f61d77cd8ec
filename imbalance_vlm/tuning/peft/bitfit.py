"""BitFit: only the biases are trained.

[0] Ben Zaken, Goldberg, Ravfogel. BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models. ACL 2022.
[1] github.com/shijxcs/LIFT, trainer.py

All biases of the tower are trained, including those of the norms. [1] trains those in the blocks only.
"""

from __future__ import annotations

from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import beyond_blocks, beyond_features


class BitFit(TowerMethod):
    """Trains the biases of the tower.

    Args:
        outside_blocks: also those before and after the blocks.
    """

    name = "bitfit"

    def __init__(self, *, outside_blocks: bool = True) -> None:
        self.outside_blocks = outside_blocks

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        outside = beyond_features(tuned.root) | (set() if self.outside_blocks else beyond_blocks(tuned.root, self.name))
        tuned.select(lambda name: name.endswith("bias") and name not in outside, "a tower with biases")
