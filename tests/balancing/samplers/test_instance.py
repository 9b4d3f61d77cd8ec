"""Instance-balanced sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.components import catalogue

LABELS = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]


def sampler(name: str, labels: Tensor, seed: int = 0, **settings: Any) -> Any:
    return catalogue.SAMPLERS.get(name).load()(labels, seed, **settings)


def test_instance_sampling_is_a_permutation() -> None:
    assert sorted(sampler("instance", LABELS).epoch(0, 1).tolist()) == list(range(len(LABELS)))
