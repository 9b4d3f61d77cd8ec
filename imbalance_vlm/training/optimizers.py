"""torch's optimizers, with the one convention all recipes share: no weight decay on biases, norms and scales."""

from __future__ import annotations

import torch
from torch import nn

from imbalance_vlm.types import NonNegative, Positive, Share


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay, vectors and scalars without."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def sgd(
    parameters: list[nn.Parameter],
    *,
    lr: Positive = 0.1,
    momentum: Share = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """torch.optim.SGD.

    Args:
        parameters: what is trained.
        lr: peak learning rate.
        momentum: of the velocity.
        nesterov: look ahead.
        weight_decay: added to the gradient of matrices.
    """
    return torch.optim.SGD(
        parameter_groups(parameters, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0
    )


def adamw(
    parameters: list[nn.Parameter],
    *,
    lr: Positive = 1e-3,
    weight_decay: NonNegative = 0.0,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
) -> torch.optim.Optimizer:
    """torch.optim.AdamW.

    Args:
        parameters: what is trained.
        lr: peak learning rate.
        weight_decay: decoupled, on matrices.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
    """
    return torch.optim.AdamW(parameter_groups(parameters, weight_decay), lr=lr, betas=(beta1, beta2))
