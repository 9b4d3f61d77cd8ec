"""torch's optimizers, without weight decay on biases, norms and scales.

On a GPU a step is one fused kernel over all parameters; on the CPU it is torch's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from imbalance_vlm.components.ranges import NonNegative, Positive, Share
from imbalance_vlm.training.distributed.sharding import is_sharded

Parameters = Sequence[nn.Parameter] | Sequence[Mapping[str, Any]]
"""Parameters, or groups of them; a group's `lr_scale` multiplies the rate that the schedule gives."""


def parameter_groups(parameters: Parameters, weight_decay: float) -> list[dict[str, Any]]:
    """Split each group into matrices, with weight decay, and vectors and scalars, without.

    >>> groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "lr_scale": 0.5}]
    >>> [(group["weight_decay"], group["lr_scale"]) for group in parameter_groups(groups, 0.1)]
    [(0.1, 0.5)]
    """
    ungrouped = [parameter for parameter in parameters if isinstance(parameter, nn.Parameter)]
    grouped = [group for group in parameters if isinstance(group, Mapping)]
    groups = [
        {**group, "params": members, "weight_decay": decay}
        for group in ([{"params": ungrouped}] if ungrouped else grouped)
        for members, decay in (
            ([p for p in group["params"] if p.ndim > 1], weight_decay),
            ([p for p in group["params"] if p.ndim <= 1], 0.0),
        )
    ]
    return [group for group in groups if group["params"]]


def can_fuse(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether torch's fused kernels can take a step: all parameters are on a GPU, and none is sharded."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.is_cuda and p.is_floating_point() and not is_sharded(p) for p in parameters)


def sgd(
    parameters: Parameters,
    *,
    lr: Positive = 0.1,
    momentum: Share = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """torch.optim.SGD.

    Args:
        parameters: to train, or groups of them.
        lr: peak learning rate.
        momentum: factor of the previous velocity.
        nesterov: whether to use Nesterov's momentum.
        weight_decay: added to the gradient of matrices.
    """
    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=can_fuse(groups) or None
    )


def adamw(
    parameters: Parameters,
    *,
    lr: Positive = 1e-3,
    weight_decay: NonNegative = 0.0,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
) -> torch.optim.Optimizer:
    """torch.optim.AdamW.

    Args:
        parameters: to train, or groups of them.
        lr: peak learning rate.
        weight_decay: decoupled, on matrices.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
    """
    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=can_fuse(groups) or None)
