"""Adapter: a bottleneck after the MLP of every block.

[0] Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly. Parameter-Efficient Transfer
    Learning for NLP. ICML 2019. (after attention and after the MLP)
[1] Shi et al. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
[2] github.com/shijxcs/LIFT, models/peft_modules.py

    h = MLP(norm2(x));   x <- x + h + Up(ReLU(Down(LN(h))))

Up starts at zero, LN is learned with the adapter, and the width follows the number of classes, as in [1].

Differs from [0] in: one adapter per block instead of two, and a norm before it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.peft.adaptformer import Bottleneck
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower, adaptive_width
from imbalance_vlm.tuning.peft.towers import transformer_tower


class SequentialBottleneck(Bottleneck):
    """A bottleneck that reads the output of the MLP and is added to it."""

    def after(self, mlp: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + self(output).to(output.dtype) if self.active else output


class Adapter(TowerMethod):
    """A bottleneck after the MLP of every block.

    Args:
        width: width of the bottleneck; null for 2^floor(log2(C / 2L)) for C classes and L blocks.
    """

    name = "adapter"

    def __init__(self, *, width: Count | None = None) -> None:
        self.width = width

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tower = transformer_tower(tuned.root, self.name)
        hidden = self.width or adaptive_width(num_classes, len(tower.blocks))
        for block in tower.blocks:
            module = SequentialBottleneck(tower.width, hidden)
            tuned.add(block.module, self.name, module, like=block.norm2)
            tuned.hook(block.mlp.register_forward_hook(module.after))
