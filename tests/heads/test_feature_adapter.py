"""The residual bottleneck before a classifier."""

from __future__ import annotations

import torch

from imbalance_vlm.heads.feature_adapter import FeatureAdapter
from tests.heads.problem import WIDTH, features


def test_adapter_starts_as_the_identity() -> None:
    assert torch.equal(FeatureAdapter(WIDTH, 3)(features()), features())


def test_adapter_follows_its_equation() -> None:
    adapter = FeatureAdapter(WIDTH, 3).requires_grad_(False)
    for parameter in adapter.parameters():
        parameter.normal_()
    got = adapter(features())
    for row, changed in zip(features(), got, strict=True):
        hidden = [max(0.0, float(v @ row + b)) for v, b in zip(adapter.down.weight, adapter.down.bias, strict=True)]
        for k in range(WIDTH):
            change = sum(float(u) * h for u, h in zip(adapter.up.weight[k], hidden, strict=True))
            torch.testing.assert_close(changed[k], row[k] + change + adapter.up.bias[k])
