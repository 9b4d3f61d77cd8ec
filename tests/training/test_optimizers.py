"""Weight decay, and the kernels that take a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from imbalance_vlm.training.distributed.sharding import load_optimizer_state
from imbalance_vlm.training.optimizers import adamw, can_fuse, sgd


@pytest.mark.parametrize("make", [sgd, adamw])
def test_steps_are_not_fused_on_the_cpu(make: Any) -> None:
    optimizer = make([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    assert not any(group["fused"] for group in optimizer.param_groups)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [sgd, adamw])
def test_fused_steps_equal_those_on_the_cpu(make: Any) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(3, 4).to(device))
        optimizer = make([weight], lr=0.1, weight_decay=0.1)
        assert bool(optimizer.param_groups[0]["fused"]) == (device == "cuda")
        for _ in range(3):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()
        ends.append(weight.detach().cpu())
    torch.testing.assert_close(*ends)


def test_checkpoint_of_another_device_keeps_the_kernels() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = adamw([weight])
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"fused": True, "foreach": True, "lr": 0.7}  # as on a GPU
    assert not can_fuse(optimizer.param_groups)
    load_optimizer_state(optimizer, state)
    group = optimizer.param_groups[0]
    assert (group["fused"], group["foreach"], group["lr"]) == (None, None, 0.7)
