"""Which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imbalance_vlm.components import catalogue


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS.names())
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = catalogue.OPTIMIZERS.get(name).load()(list(module.parameters()), lr=0.1, weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {key: decay[id(p)] for key, p in module.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS.names())
def test_one_step_goes_downhill(name: str) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = catalogue.OPTIMIZERS.get(name).load()([weight], lr=0.1)
    weight.square().sum().backward()
    optimizer.step()
    assert torch.all(weight < 1)
