"""LoRA: a low-rank change of the query and value matrices.

[0] Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022.
[1] github.com/microsoft/LoRA, loralib/layers.py
[2] github.com/shijxcs/LIFT-plus, trainer.py and models/modules.py (scale 1 / r, r from the number of classes)

    W_q <- W_q + 1/r U_q D_q,   W_v <- W_v + 1/r U_v D_v,   D (r, w) Kaiming-uniform, U (w, r) zero

If a tower keeps query, key and value in one matrix, its rows are changed.

Differs from [2] in: D starts with the bound 1/sqrt(w) of [1] ([2] stores it transposed and gets 1/sqrt(r)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower, WeightOverride, adaptive_width
from imbalance_vlm.tuning.peft.towers import Site, transformer_tower


class LowRank(WeightOverride):
    """Adds a product of rank r to the query rows of a stacked matrix (3 d, w), and another to its value rows."""

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__(site)
        weight, _ = site.base
        self.rows = site.rows(3)  # of query, key and value
        self.scale = 1 / rank
        self.q_down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.q_up = nn.Parameter(torch.zeros(self.rows[0], rank))
        self.v_down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.v_up = nn.Parameter(torch.zeros(self.rows[2], rank))
        for down in (self.q_down, self.v_down):
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        q, k, v = weight.split(self.rows)  # (d, w) each
        q = q + self.scale * (self.q_up @ self.q_down)
        v = v + self.scale * (self.v_up @ self.v_down)
        return torch.cat([q, k, v]), bias


class LoRA(TowerMethod):
    """A change of low rank to the query and value matrices of every block.

    Args:
        rank: rank r of the change; null for 2^floor(log2(C / 4L)) for C classes and L blocks, which gives about as many
            parameters as AdaptFormer.
    """

    name = "lora"

    def __init__(self, *, rank: Count | None = None) -> None:
        self.rank = rank

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tower = transformer_tower(tuned.root, self.name)
        rank = self.rank or adaptive_width(num_classes, 2 * len(tower.blocks))
        for block in tower.blocks:
            tuned.reweight(block.module, self.name, lambda site: LowRank(site, rank), [block.attention_in()])
