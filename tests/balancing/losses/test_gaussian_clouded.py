"""The clouds of GCL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.losses.gaussian_clouded import GaussianClouded
from tests.balancing.losses import oracles
from tests.balancing.losses.oracles import MILD


def clouded(**settings: Any) -> GaussianClouded:
    loss = create_loss("gaussian_clouded", MILD, reduction="none", head_scale=25.0, **settings)
    assert isinstance(loss, GaussianClouded)
    return loss


def test_clouds_are_those_of_the_equation() -> None:
    logits, targets = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    loss = clouded(s_n=0.8)
    eps = loss.noise(logits)
    loss.on_epoch(0, 1)  # the epoch's first clouds once more
    got = loss(logits, targets).tolist()
    rows = list(zip(logits.tolist(), targets.tolist(), eps.tolist(), strict=True))
    wanted = [oracles.gaussian_clouded(row, y, MILD, s_n=0.8, eps=noise) for row, y, noise in rows]
    without = [oracles.gaussian_clouded(row, y, MILD, s_n=0.8) for row, y, _ in rows]
    np.testing.assert_allclose(got, wanted, rtol=1e-10)
    assert not np.allclose(got, without)
    np.testing.assert_allclose(loss.eval()(logits, targets).tolist(), without, rtol=1e-10)


def test_clouds_depend_on_the_seed_and_the_epoch_alone() -> None:
    like = torch.zeros(400, 5)
    torch.manual_seed(4)
    loss, other = clouded(), clouded()
    torch.manual_seed(5)
    third = clouded()
    loss.on_epoch(0, 9)
    first, second = loss.noise(like), loss.noise(like)
    loss.on_epoch(7, 9)
    later = loss.noise(like)
    other.on_epoch(7, 9)
    third.on_epoch(7, 9)
    assert torch.equal(later, other.noise(like))
    assert not torch.equal(first, second)
    assert not torch.equal(first, later)
    assert not torch.equal(later, third.noise(like))


def test_clouds_have_a_standard_deviation_of_a_third() -> None:
    eps = clouded().noise(torch.zeros(4000, 5))
    assert float(eps.std()) == pytest.approx(1 / 3, rel=0.02)
    assert float(eps.abs().max()) == 1.0  # clamped: 0.27 % of the draws
