"""Random mask: a fixed random share of the weights is trained.

[0] Xu, Zhang. Random Masking Finds Winning Tickets for Parameter Efficient Fine-tuning. ICML 2024.
[1] Shi et al. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
[2] github.com/shijxcs/LIFT-plus, trainer.py

    W_j <- v_j at the drawn places j, W_j elsewhere;   v starts at W

The places are drawn with torch's global generator, which the run has seeded, and are saved with the values. The
optimizer gets v alone, so that neither weight decay nor momentum can change the other weights. As in [2], w C weights
of the blocks are drawn, about as many as AdaptFormer trains.

Differs from [2] in: biases are not trained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from imbalance_vlm.components.ranges import Part
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower, WeightOverride
from imbalance_vlm.tuning.peft.towers import Site, transformer_tower


class Sparse(WeightOverride):
    """Replaces the weights of a matrix at some places by trained values."""

    places: Tensor

    def __init__(self, site: Site, share: float) -> None:
        super().__init__(site)
        weight, _ = site.base
        count = max(1, round(share * weight.numel()))
        generator = np.random.default_rng(int(torch.randint(2**62, (), device="cpu")))  # torch would permute all places
        drawn = np.sort(generator.choice(weight.numel(), count, replace=False, shuffle=False))
        places = torch.from_numpy(drawn).to(weight.device)
        self.register_buffer("places", places)
        values = weight.detach().flatten()[places][None]
        self.values = nn.Parameter(values)  # (1, k): two dimensions, so that they decay like matrices

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.flatten().scatter(0, self.places, self.values[0]).view_as(weight), bias


class RandomMask(TowerMethod):
    """Trains a random share of the weights of every matrix of the blocks.

    Args:
        share: share of the weights of each matrix, above 0 and at most 1; null for w C weights in total, for a tower
            of width w and C classes.
    """

    name = "random_mask"

    def __init__(self, *, share: Part | None = None) -> None:
        self.share = share

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tower = transformer_tower(tuned.root, self.name)
        total = sum(site.base[0].numel() for block in tower.blocks for site in block.matrices())
        share = self.share or min(1.0, tower.width * num_classes / total)
        for block in tower.blocks:
            tuned.reweight(block.module, self.name, lambda site: Sparse(site, share), block.matrices())
