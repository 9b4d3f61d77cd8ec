"""LWS: its bias."""

from __future__ import annotations

import torch

from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.balancing.second_stages.lws import LWS
from tests.balancing.second_stages.problem import WIDTH, fitted


def test_lws_scales_the_bias_with_the_weights(stage: Stage) -> None:
    second = fitted(LWS, stage)
    assert isinstance(second, LWS)
    torch.testing.assert_close(second(torch.zeros(1, WIDTH))[0], second.scales * stage.bias())
