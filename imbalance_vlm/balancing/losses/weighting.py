"""Class weights, separate from the loss of a sample.

    inverse frequency        w_c = pi_c^-rho
    effective number         w_c = (1 - beta) / (1 - beta^n_c)

Both are scaled to mean 1 over the classes that have images, so that they sum to their number; a class without images
has weight 0. Any weights can be deferred (DRW): all are 1 until a share of the training is over.

[0] Cui, Jia, Lin, Song, Belongie. Class-Balanced Loss Based on Effective Number of Samples. CVPR 2019.
[1] Cao, Wei, Gaidon, Arechiga, Ma. Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss. NeurIPS
    2019. Algorithm 1 (deferred re-weighting); github.com/kaidic/LDAM-DRW switches at epoch 160 of 200.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Rule = Callable[[Tensor], Tensor]
"""Floating-point class counts (C,) to weights (C,)."""


def inverse_frequency(counts: Tensor, rho: float) -> Tensor:
    """(C,) weights proportional to n_c^-rho, mean 1; `counts` (C,) floating-point."""
    logs = torch.where(counts > 0, -rho * counts.log(), -torch.inf)
    return mean_one((logs - logs.max()).exp())  # a large rho makes powers of counts overflow, but not their ratios


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """(C,) weights (1 - beta) / (1 - beta^n_c), mean 1; `counts` (C,) floating-point, beta in [0, 1).

    With beta 0 all weights are equal, with beta near 1 they are inverse frequencies. 1 - beta^n is computed as -expm1(n
    log beta): in float32 the power rounds to 1 for a beta close to 1 and a small n.
    """
    log_beta = math.log(beta) if beta > 0 else -math.inf
    effective = -torch.expm1(counts * log_beta)  # (C,) times 1 - beta, a factor that the scaling removes
    return mean_one(torch.where(counts > 0, 1.0 / effective, 0.0))


def mean_one(weights: Tensor) -> Tensor:
    """`weights` (C,) scaled so that the mean of the positive weights is 1."""
    return weights * ((weights > 0).sum() / weights.sum())


class ClassWeighting(nn.Module):
    """(C,) class weights by a rule; 1 until they are switched on.

    Args:
        rule: counts (C,) to weights (C,).
        defer: share of the training during which all weights are 1; 0 for none, 0.8 is DRW's choice.
    """

    on: Tensor

    def __init__(self, rule: Rule, defer: float = 0.0) -> None:
        super().__init__()
        self.rule = rule
        self.defer = defer
        self.register_buffer("on", torch.tensor(defer == 0))  # () bool: never fetched from the device

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Switch the weights on from the first epoch that begins after a share `defer` of the training."""
        self.on.fill_(epoch / epochs >= self.defer)

    def forward(self, counts: Tensor) -> Tensor:
        """(C,) weights of floating-point `counts` (C,)."""
        return torch.where(self.on, self.rule(counts), 1.0)
