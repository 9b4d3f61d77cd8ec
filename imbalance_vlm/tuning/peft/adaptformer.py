"""AdaptFormer: a bottleneck parallel to the MLP of every block.

[0] Chen, Ge, Tong, Wang, Song, Wang, Luo. AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition.
    NeurIPS 2022. (s fixed at .1)
[1] Shi, Wei, Zhou, Shao, Han, Li. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
[2] github.com/shijxcs/LIFT, models/peft_modules.py

    x <- x + MLP(norm2(x)) + s Up(ReLU(Down(LN(x))))

LN is learned with the bottleneck, s is learned and starts at 1 as in [1], and Up starts at zero, so that the outputs of
the tower do not change at the start. The width of the bottleneck follows the number of classes [1]: with ViT-B/16,
101,436 parameters for 100 classes, 175,212 for 365, 617,868 for 1000 and 4,749,324 for 8142.

Differs from [2] in: s multiplies the weights of Up, not its output, which then is not kept for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.peft.base import Added, TowerMethod, TunedTower, adaptive_width
from imbalance_vlm.tuning.peft.towers import transformer_tower


class Bottleneck(Added):
    """Up(ReLU(Down(LN(x)))), (B, T, w) -> (B, T, w), zero at the start."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.down(self.norm(x)))  # (B, T, r)
        return self.up(hidden)


class ParallelBottleneck(Bottleneck):
    """A bottleneck with a learned scale from the input of the MLP's branch, before the norm, to its output."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.scale = nn.Parameter(torch.ones(1))
        self.branch_input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.down(self.norm(x)))
        return F.linear(hidden, self.scale * self.up.weight, self.scale * self.up.bias)

    def enter(self, entry: nn.Module, args: Any) -> None:
        self.branch_input = args[0] if self.active else None

    def leave(self, branch: nn.Module, args: Any, output: Tensor) -> Tensor:
        x, self.branch_input = self.branch_input, None
        return output if x is None else output + self(x).to(output.dtype)


class AdaptFormer(TowerMethod):
    """A bottleneck parallel to the MLP of every block.

    Args:
        width: width of the bottleneck; null for 2^floor(log2(C / 2L)) for C classes and L blocks.
    """

    name = "adaptformer"

    def __init__(self, *, width: Count | None = None) -> None:
        self.width = width

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tower = transformer_tower(tuned.root, self.name)
        hidden = self.width or adaptive_width(num_classes, len(tower.blocks))
        for block in tower.blocks:
            module = ParallelBottleneck(tower.width, hidden)
            tuned.add(block.module, self.name, module, like=block.norm2)
            tuned.hook(
                block.entry.register_forward_pre_hook(module.enter),
                block.branch.register_forward_hook(module.leave),
            )
