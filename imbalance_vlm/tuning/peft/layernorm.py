"""LayerNorm tuning: only the layer norms are trained.

[0] Basu, Hu, Massiceti, Feizi. Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning. AAAI 2024.

Weights and biases of all layer norms of the tower are trained, including those around the blocks.
"""

from __future__ import annotations

from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import norms


class LayerNorm(TowerMethod):
    """Trains the weights and biases of the layer norms."""

    name = "layernorm"

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        holders = {name for name, _ in norms(tuned.root)}
        tuned.select(lambda name: name.rpartition(".")[0] in holders, "a tower with layer norms")
