"""SADE's three losses, one by one, and the prior with reversed ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.losses.sade import expert_shifts, rank_reversed, sade
from tests.balancing.losses import oracles

COUNTS = (120, 45, 20, 7, 3)
TIED = (7, 120, 3, 7, 20, 3, 3)


def of_experts(seed: int = 0, num_classes: int = len(COUNTS)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(8, 3, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(8) % num_classes


@pytest.mark.parametrize("counts", [COUNTS, TIED, (9, 9, 9)])
@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0])
def test_each_expert_has_its_own_loss(counts: tuple[int, ...], tau: float) -> None:
    logits, targets = of_experts(num_classes=len(counts))
    shifts = expert_shifts(torch.tensor(counts), logits, tau)
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    wanted = [oracles.sade_experts(row, y, counts, tau) for row, y in rows]
    np.testing.assert_allclose(sade(logits, targets, shifts).tolist(), wanted, rtol=1e-10)
    total = create_loss("sade", counts, tau=tau, reduction="none")(logits, targets)
    np.testing.assert_allclose(total.tolist(), [sum(per_expert) for per_expert in wanted], rtol=1e-10)


def test_oracle_rejects_cross_entropy_for_each_expert() -> None:
    logits, targets = of_experts()
    plain = [F.cross_entropy(logits[:, e], targets, reduction="none") for e in range(3)]
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    wanted = torch.tensor([oracles.sade_experts(row, y, COUNTS) for row, y in rows])
    torch.testing.assert_close(plain[0], wanted[:, 0].double(), rtol=1e-5, atol=1e-5)  # the first is cross-entropy
    assert not np.allclose(plain[1], wanted[:, 1], rtol=0.01)
    assert not np.allclose(plain[2], wanted[:, 2], rtol=0.01)


def test_ranks_are_reversed_and_ties_are_averaged() -> None:
    def reverse(*counts: int) -> list[float]:
        return rank_reversed(torch.tensor(counts), torch.zeros((), dtype=torch.float64)).tolist()

    assert reverse(120, 45, 20, 7, 3) == [3, 7, 20, 45, 120]
    assert reverse(45, 3, 120, 7) == [7, 120, 3, 45]
    assert reverse(9, 9, 9) == [9, 9, 9]
    assert reverse(100, 2, 2, 1) == [1, 2, 2, 100]
    assert reverse(100, 50, 1, 1) == [1, 1, 75, 75]  # the two rarest share what ranks 1 and 2 get
    assert reverse(*TIED) == pytest.approx(oracles.rank_reversed(TIED))
    assert sum(reverse(*TIED)) == pytest.approx(sum(TIED))


def test_a_mirrored_prior_adds_up_in_the_third_shift() -> None:
    """Where inv_pi is 1 / pi up to a constant, log pi - 2 log inv_pi is 3 log pi up to a constant."""
    logits, _ = of_experts(num_classes=3)
    shifts = expert_shifts(torch.tensor([100, 10, 1]), logits, 2.0)
    torch.testing.assert_close(shifts[2] - shifts[2, 1], 3 * (shifts[1] - shifts[1, 1]))


def test_experts_that_share_their_logits_may_be_given_once() -> None:
    logits, targets = of_experts()
    shared = logits[:, :1].expand(-1, 3, -1)
    loss = create_loss("sade", COUNTS, reduction="none")
    torch.testing.assert_close(loss(logits[:, 0], targets), loss(shared, targets))


def test_three_times_cross_entropy_on_uniform_counts() -> None:
    logits, targets = of_experts()
    value = create_loss("sade", [10] * len(COUNTS))(logits[:, 0], targets)
    torch.testing.assert_close(value, 3 * F.cross_entropy(logits[:, 0], targets))


def test_the_gradient_of_an_expert_is_that_of_its_own_loss() -> None:
    logits, targets = of_experts()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: create_loss("sade", COUNTS)(z, targets), (logits,))
    loss = create_loss("sade", COUNTS, reduction="none")
    (grad,) = torch.autograd.grad(loss(logits, targets).sum(), logits)
    torch.testing.assert_close(grad.sum(2), torch.zeros(8, 3).double(), atol=1e-12, rtol=0)
    changed = logits.detach().clone()
    changed[:, 2] += torch.arange(len(COUNTS))
    (other,) = torch.autograd.grad(loss(changed.requires_grad_(), targets).sum(), changed)
    torch.testing.assert_close(other[:, :2], grad[:, :2])


def test_an_empty_class_takes_no_part_in_any_expert() -> None:
    logits, _ = of_experts(num_classes=4)
    logits.requires_grad_()
    targets = torch.tensor([0, 2, 3, 0, 2, 3, 0, 2])
    value = create_loss("sade", LongTail([30, 0, 4, 9], allow_empty=True))(logits, targets)
    without = create_loss("sade", [30, 4, 9])(logits[:, :, [0, 2, 3]], (targets - 1).clamp_min(0))
    torch.testing.assert_close(value, without)
    (grad,) = torch.autograd.grad(value, logits)
    assert torch.all(grad[:, :, 1] == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_of_experts_are_finite(dtype: torch.dtype) -> None:
    logits = (1e4 * torch.tensor([[[1.0, -1, 1], [-1, 1, 1], [-1, -1, -1]]])).to(dtype).requires_grad_()
    for target in range(3):
        value = create_loss("sade", [500, 20, 1])(logits, torch.tensor([target]))
        assert value.dtype == dtype
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


@pytest.mark.parametrize("shape", [(8, 2, 5), (8, 4, 5), (8, 3, 4), (8, 3, 5, 1)])
def test_logits_of_another_number_of_experts_or_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"`logits` must be \("):
        create_loss("sade", COUNTS)(torch.zeros(shape), torch.zeros(8, dtype=torch.int64))
