"""torch's optimizers, with the one convention all recipes share: no weight decay on biases, norms and scales.

On a GPU a step is one kernel over all parameters ("fused"). On the CPU it is torch's plain one, whose numbers the
recipes here were run with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from imbalance_vlm.components.ranges import NonNegative, Positive, Share
from imbalance_vlm.training.devices import is_sharded

Parameters = Sequence[nn.Parameter] | Sequence[Mapping[str, Any]]
"""Parameters, or groups of them with an `lr_scale`: timm's schedules multiply a group's learning rate by it."""


def parameter_groups(parameters: Parameters, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors and scalars without, in each group that is given.

    >>> groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "lr_scale": 0.5}]
    >>> [(group["weight_decay"], group["lr_scale"]) for group in parameter_groups(groups, 0.1)]
    [(0.1, 0.5)]
    """
    flat = [one for one in parameters if isinstance(one, nn.Parameter)]
    given = [one for one in parameters if isinstance(one, Mapping)]
    groups = [
        {**group, "params": chosen, "weight_decay": decay}
        for group in ([{"params": flat}] if flat else given)
        for chosen, decay in (
            ([p for p in group["params"] if p.ndim > 1], weight_decay),
            ([p for p in group["params"] if p.ndim <= 1], 0.0),
        )
    ]
    return [group for group in groups if group["params"]]


def one_kernel(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether torch's fused kernels can take a step: all parameters lie on a GPU, and none in parts on several."""
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
        parameters: what is trained, or groups of it.
        lr: peak learning rate.
        momentum: of the velocity.
        nesterov: look ahead.
        weight_decay: added to the gradient of matrices.
    """
    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=one_kernel(groups) or None
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
        parameters: what is trained, or groups of it.
        lr: peak learning rate.
        weight_decay: decoupled, on matrices.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
    """
    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=one_kernel(groups) or None)
