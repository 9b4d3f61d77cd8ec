"""SSF: the outputs of every layer are scaled and shifted.

[0] Lian, Zhou, Feng, Wang. Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning. NeurIPS 2022.
[1] github.com/dongzelian/SSF

    y <- gamma * y + beta   after each norm and each matrix of the blocks, and after the norms around them

With y = W x + b this is W <- gamma W, b <- gamma b + beta, and is computed in this way.

Differs from [1] in: gamma starts at 1 and beta at 0 without noise, so that the outputs of the tower do not change at
the start; the patch embedding is not changed (CLIP's has no bias to add a shift to).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower, WeightOverride
from imbalance_vlm.tuning.peft.towers import Site, transformer_tower


class ScaledShifted(WeightOverride):
    """gamma W and gamma b + beta, with one gamma and one beta per row of W."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        weight, _ = site.base
        self.scale = nn.Parameter(torch.ones(len(weight)))
        self.shift = nn.Parameter(torch.zeros(len(weight)))

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = self.scale[:, None] if weight.ndim == 2 else self.scale  # a matrix or a norm
        return scale * weight, self.shift if bias is None else self.scale * bias + self.shift


class SSF(TowerMethod):
    """Learns a scale and a shift after every matrix and norm of the blocks, and after the norms around them."""

    name = "ssf"

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tower = transformer_tower(tuned.root, self.name)
        for block in tower.blocks:
            tuned.reweight(block.module, self.name, ScaledShifted, [*block.matrices(), *block.norms()])
        tuned.reweight(tower.root, self.name, ScaledShifted, tower.outer_norms())
