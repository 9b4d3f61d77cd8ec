"""The interface of gradient transforms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient, PlainGradient
from imbalance_vlm.balancing.gradients.prograd import ProGrad
from imbalance_vlm.balancing.gradients.subspace import Subspace

SHAPES = {"context": (3, 4), "net.bias": (5,)}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }


def snapshots(count: int, seed: int = 1) -> list[dict[str, Tensor]]:
    return [{name: value.detach() for name, value in parameters(seed + k).items()} for k in range(count)]


def subspace(rank: int = 3, keep: int = 6) -> Subspace:
    transform = Subspace(keep=keep, rank=rank)
    transform.learn(snapshots(keep))
    return transform


class Plugin(Gradient):
    """A transform that does not mention `is_linear`."""


def test_only_the_plain_gradient_is_linear() -> None:
    assert PlainGradient().is_linear
    assert not any(transform.is_linear for transform in (ProGrad(1.0), subspace(), Plugin()))
