"""The text anchor against loops from its equation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.text_anchor import TextAnchor
from imbalance_vlm.errors import InputError


def unit_rows(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def seen(text: Tensor | None, frozen: Tensor | None) -> StepOutputs:
    return StepOutputs(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), torch.zeros(2, 3), text, frozen)


def by_hand(learned: Tensor, frozen: Tensor, distance: str) -> float:
    total = 0.0
    for t, w in zip(learned.tolist(), frozen.tolist(), strict=True):
        apart = [a - b for a, b in zip(t, w, strict=True)]
        length = math.sqrt(sum(a * a for a in t)) * math.sqrt(sum(b * b for b in w))
        total += {
            "cos": 1 - sum(a * b for a, b in zip(t, w, strict=True)) / length,
            "l1": sum(map(abs, apart)),
            "mean_l1": sum(map(abs, apart)) / 4,
            "l2": sum(x * x for x in apart),
        }[distance]
    return total / len(learned)


@pytest.mark.parametrize("distance", ["cos", "l1", "mean_l1", "l2"])
def test_the_mean_distance_over_the_names(distance: Any) -> None:
    learned, frozen, elsewhere = unit_rows(3, 0), unit_rows(3, 1), unit_rows(3, 2)
    expected = by_hand(learned, frozen, distance)
    assert expected > 0.1
    base = TextAnchor(distance=distance, weight=8.0)
    assert float(base(seen(learned, frozen))) == pytest.approx(expected)
    own_target = TextAnchor(None, frozen, distance=distance)
    assert float(own_target(seen(learned, elsewhere))) == pytest.approx(expected)
    others = TextAnchor(lambda: learned, frozen, names="novel", distance=distance)
    assert float(others(seen(elsewhere, elsewhere))) == pytest.approx(expected)
    assert float(base(seen(frozen, frozen))) == pytest.approx(0, abs=1e-12)
    assert base.weight == 8.0


@pytest.mark.parametrize("distance", ["cos", "l1", "mean_l1", "l2"])
def test_the_gradient_is_right_also_where_nothing_has_moved(distance: Any) -> None:
    frozen, anchor = unit_rows(3, 1), TextAnchor(distance=distance)
    learned = unit_rows(3, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda text: anchor(seen(text, frozen)), learned)
    start = frozen.clone().requires_grad_()
    anchor(seen(start, frozen)).backward()
    assert start.grad is not None
    assert bool(start.grad.isfinite().all())


def test_nothing_of_it_is_in_a_checkpoint() -> None:
    assert TextAnchor(None, unit_rows(3, 0)).state_dict() == {}


def test_what_cannot_be_anchored_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="'novel' names needs `learned` and `frozen`"):
        TextAnchor(names="novel")
    with pytest.raises(InputError, match="this head learns none"):
        TextAnchor()(seen(None, unit_rows(3, 0)))
    with pytest.raises(InputError, match=r"`frozen` must have the shape .*\(3, 4\), got \(2, 4\)"):
        TextAnchor(None, unit_rows(2, 0))(seen(unit_rows(3, 0), None))
