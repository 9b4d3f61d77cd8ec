"""The focal loss where the sample is right."""

from __future__ import annotations

import math

import pytest
import torch

from imbalance_vlm.balancing.losses.factory import create_loss


def test_focal_keeps_its_digits_where_the_sample_is_right() -> None:
    """At p_y = 1 - 1e-12 the loss is about 1e-36, not 0 and not noise."""
    margin = -math.log(1e-12)
    value = create_loss("focal", [1, 1])(torch.tensor([[margin, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert float(value) == pytest.approx(1e-36, rel=1e-6)
