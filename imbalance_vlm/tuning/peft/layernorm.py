"""LayerNorm tuning: only the layer norms are trained.

[0] Basu, Hu, Massiceti, Feizi. Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning. AAAI 2024.
[1] github.com/shijxcs/LIFT, trainer.py

Weights and biases of all layer norms of the tower are trained, including those around the blocks, which [1] leaves out.
"""

from __future__ import annotations

from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import beyond_blocks, norms


class LayerNorm(TowerMethod):
    """Trains the weights and biases of the layer norms.

    Args:
        outside_blocks: also of those before and after the blocks.
    """

    name = "layernorm"

    def __init__(self, *, outside_blocks: bool = True) -> None:
        self.outside_blocks = outside_blocks

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        holders = {name for name, _ in norms(tuned.root)}
        outside = set() if self.outside_blocks else beyond_blocks(tuned.root, self.name)
        tuned.select(
            lambda name: name.rpartition(".")[0] in holders and name not in outside, "a tower with layer norms"
        )
