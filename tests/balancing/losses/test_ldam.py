"""Losses on cosines: margins in units of the cosine, and the scale of the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.losses.gaussian_clouded import GaussianClouded
from imbalance_vlm.balancing.losses.ldam import LDAM
from imbalance_vlm.heads.cosine import CosineHead


def test_ldam_has_its_margin_in_the_units_of_the_head() -> None:
    """A head that scales its cosines by 25 and one that does not give the same loss, with the scale applied once."""
    cosines = torch.tensor([[0.3, 0.2], [0.1, 0.6]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    for name in ("ldam", "gaussian_clouded"):
        raw = create_loss(name, [16, 1], head_scale=1.0)(cosines, targets)
        scaled = create_loss(name, [16, 1], head_scale=25.0)(25.0 * cosines, targets)
        torch.testing.assert_close(raw, scaled)
    margins = torch.tensor([[0.25, 0.0], [0.0, 0.5]], dtype=torch.float64)  # 16^(-1/4) = 1/2
    wanted = torch.nn.functional.cross_entropy(30.0 * (cosines - margins), targets)
    torch.testing.assert_close(create_loss("ldam", [16, 1], head_scale=1.0)(cosines, targets), wanted)
    same = create_loss("ldam", [16, 1], s=25.0, head_scale=25.0)(25.0 * cosines, targets)
    torch.testing.assert_close(same, torch.nn.functional.cross_entropy(25.0 * cosines - 25.0 * margins, targets))


def test_ldam_can_keep_the_scale_of_the_head() -> None:
    logits, targets = torch.tensor([[3.0, 2.0], [1.0, 6.0]], dtype=torch.float64), torch.tensor([0, 1])
    wanted = create_loss("ldam", [16, 1], s=25.0, head_scale=25.0)(logits, targets)
    torch.testing.assert_close(create_loss("ldam", [16, 1], s=None, head_scale=25.0)(logits, targets), wanted)


BUILDS = pytest.mark.parametrize("build", [LDAM, GaussianClouded])


@BUILDS
def test_scale_is_that_of_the_head_unless_set(build: Any) -> None:
    tail = LongTail([16, 1])
    assert build(tail, CosineHead(4, 2, scale=17.0).logit_scale).head_scale == 17.0
    assert build(tail, 17.0, head_scale=1.0).head_scale == 1.0


@BUILDS
def test_cosines_without_a_known_scale_are_refused(build: Any) -> None:
    learned = CosineHead(4, 2, learn_scale=True).logit_scale
    with pytest.raises(InputError, match=r"`head_scale` must be the factor .* \(1 for raw cosines\), got none"):
        build(LongTail([16, 1]), learned)


@pytest.mark.parametrize("name", ["ldam", "gaussian_clouded"])
def test_loss_by_name_needs_the_scale(name: str) -> None:
    with pytest.raises(InputError, match="`head_scale` must be the factor"):
        create_loss(name, [16, 1])
