"""VPT: learned tokens inserted among those of the image.

[0] Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim. Visual Prompt Tuning. ECCV 2022.
[1] github.com/KMnP/vpt, src/models/vit_prompt/vit.py

    shallow: [class, P, patches] enters the first block
    deep:    [class, P_i, patches] enters block i, where P_i replaces the outputs of block i - 1 for P_(i-1)

P is uniform in ±sqrt(6 / (3 p^2 + w)) for patches of p x p pixels [1]. After the last block the prompts are removed, so
that poolings and decoders read the image's own tokens only. Unlike with the other methods, the outputs of the tower
change at the start.

Differs from [1] in: no dropout on the prompts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.peft.base import Added, TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import transformer_tower


class Prompts(Added):
    """Tokens (n, w) that enter a block after its first `after` tokens and replace the next `replaces` ones."""

    def __init__(self, tokens: int, width: int, bound: float, after: int, replaces: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width).uniform_(-bound, bound))
        self.after, self.replaces = after, replaces

    def insert(self, block: nn.Module, args: Any) -> Any:
        if not self.active:
            return None
        x, *more = args  # (B, T, w)
        prompts = self.tokens.to(x.dtype).expand(len(x), -1, -1)  # (B, n, w)
        return torch.cat([x[:, : self.after], prompts, x[:, self.after + self.replaces :]], dim=1), *more

    def remove(self, block: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not self.active:
            return output
        return torch.cat([output[:, : self.after], output[:, self.after + len(self.tokens) :]], dim=1)


class VPT(TowerMethod):
    """Learns tokens that are inserted among those of the image.

    Args:
        tokens: number n of tokens per block that receives any.
        deep: whether every block receives its own tokens; otherwise tokens are inserted before the first block only.
    """

    name = "vpt"

    def __init__(self, *, tokens: Count = 10, deep: bool = True) -> None:
        self.tokens = tokens
        self.deep = deep

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tower = transformer_tower(tuned.root, self.name, adds_tokens=True)
        bound = math.sqrt(6 / (tower.patch_numbers + tower.width))
        for number, block in enumerate(tower.blocks if self.deep else tower.blocks[:1]):
            module = Prompts(self.tokens, tower.width, bound, tower.prefix, self.tokens if number else 0)
            tuned.add(block.module, self.name, module, like=block.norm2)
            tuned.hook(block.module.register_forward_pre_hook(module.insert))
        tuned.hook(tower.blocks[-1].module.register_forward_hook(module.remove))
