"""Class weights, and when deferred ones start."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from tests.balancing.losses.test_base import SKEWED, WEIGHTS


def test_weights_average_one_over_the_classes_with_images() -> None:
    for name, settings in {"weighted": {"rho": 2.0}, "class_balanced": {}}.items():
        loss = create_loss(name, LongTail([900, 30, 0, 2], allow_empty=True), **settings)
        assert loss.weighting is not None
        weights = loss.weighting(loss.counts.double())
        assert float(weights[2]) == 0.0
        assert float(weights.sum()) == pytest.approx(3.0, rel=1e-12)


def test_weights_keep_their_digits_in_float32() -> None:
    """1 - 0.9999^1 is 1e-4, and 5e6^-3 is no float32 number: both weights must come out to six digits."""
    for name, settings, wanted in (
        ("class_balanced", {"beta": 0.9999}, 1e-4 / (1 - 0.9999**20)),
        ("weighted", {"rho": 3.0}, (1 / 20) ** 3),
    ):
        loss = create_loss(name, [5_000_000, 20, 1], **settings)
        assert loss.weighting is not None
        weights = loss.weighting(loss.counts.float())
        assert torch.isfinite(weights).all()
        assert float(weights[1] / weights[2]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("name", "settings"), WEIGHTS.items())
@pytest.mark.parametrize(("epochs", "defer", "first"), [(200, 0.8, 160), (50, 0.8, 40), (100, 0.55, 55), (3, 0.5, 2)])
def test_deferred_weights_start_when_their_share_of_training_is_over(
    name: str, settings: dict[str, Any], epochs: int, defer: float, first: int
) -> None:
    counts = [50, 10, 2]
    loss = create_loss(name, counts, defer=defer, **settings)
    on = create_loss(name, counts, **settings)(*SKEWED)
    unweighted = (
        create_loss(name, counts, head_scale=25.0) if name == "ldam" else create_loss(name, [10] * 3, **settings)
    )
    off = unweighted(*SKEWED)
    assert not torch.allclose(on, off)
    for epoch in (0, first - 1, first, epochs - 1, 0):  # in any order: a resumed run starts in the middle
        loss.on_epoch(epoch, epochs)
        torch.testing.assert_close(loss(*SKEWED), on if epoch >= first else off)


def test_deferral_is_part_of_the_state() -> None:
    loss, other = (create_loss("weighted", [50, 2, 2], defer=0.5) for _ in range(2))
    loss.on_epoch(9, 10)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(*SKEWED), loss(*SKEWED))


@pytest.mark.parametrize("rho", [100.0, 3e38])
def test_weights_that_vanish_in_single_precision_are_refused(rho: float) -> None:
    create_loss("weighted", [5, 5, 5], rho=100.0)
    with pytest.raises(InputError, match="`rho` must leave every class a weight above 0"):
        create_loss("weighted", [5000, 50, 5], rho=rho)
