"""ProGrad against a loop from its equation and the authors' formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.prograd import ProGrad, aligned
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.errors import InputError


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_conflicting_part_of_a_gradient_is_removed(sign: float, strength: float) -> None:
    rng = np.random.default_rng(0)
    plain, guide = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    product = sum(plain[i, j] * guide[i, j] for i in range(3) for j in range(4))
    guide *= sign * np.sign(product)
    product = sum(plain[i, j] * guide[i, j] for i in range(3) for j in range(4))
    length = np.sqrt(sum(guide[i, j] ** 2 for i in range(3) for j in range(4)))
    unit = guide / length
    expected = plain - strength * (product / length) * unit if product < 0 else plain
    got = aligned(torch.from_numpy(plain), torch.from_numpy(guide), strength)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    assert (sign < 0 and strength > 0) == (abs(got.numpy() - plain).max() > 1e-3)


def test_a_zero_guide_leaves_the_gradient() -> None:
    plain = torch.tensor([1.0, -2.0])
    assert aligned(plain, torch.zeros(2), 1.0).tolist() == [1.0, -2.0]


def prograd_step(targets: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The transform's gradient of a text-like parameter, the gradient of the loss, and that of the divergence."""
    rng = torch.Generator().manual_seed(3)
    images = nn.functional.normalize(torch.randn(len(targets), 4, generator=rng, dtype=torch.float64), dim=-1)
    frozen = nn.functional.normalize(torch.randn(3, 4, generator=rng, dtype=torch.float64), dim=-1)
    learned = nn.Parameter(torch.randn(3, 4, generator=rng, dtype=torch.float64))

    def forward() -> tuple[Tensor, StepOutputs]:
        text = nn.functional.normalize(learned, dim=-1)
        logits = 10.0 * images @ text.t()
        labels = torch.tensor(targets)
        return nn.functional.cross_entropy(logits, labels), StepOutputs(images, labels, logits, text, frozen)

    transform = ProGrad(10.0, strength=1.0, temperature=2.0)
    transform.start({"text": learned})
    transform.backward(*forward())
    assert learned.grad is not None
    loss, _ = forward()
    (plain,) = torch.autograd.grad(loss, learned)
    zero_shot = (10.0 * images @ frozen.t()).numpy() / 2.0
    teacher = np.exp(zero_shot) / np.exp(zero_shot).sum(1, keepdims=True)
    student = torch.log_softmax(forward()[1].logits / 2.0, 1)  # [1]: T^2 times the cross-entropy to the teacher
    total = sum(-teacher[i, c] * student[i, c] for i in range(len(targets)) for c in range(3)) * 4 / len(targets)
    (guide,) = torch.autograd.grad(total, learned)
    return learned.grad, plain, guide


def test_prograd_changes_the_gradient_as_the_authors_code_does() -> None:
    conflicts = 0
    for targets in ([0, 1, 2, 0], [1, 2, 0, 0], [2, 0, 1, 1]):
        got, plain, guide = prograd_step(targets)
        product = float((plain * guide).sum())
        unit = guide / guide.norm()
        expected = plain - (plain * unit).sum() * unit if product < 0 else plain
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        conflicts += product < 0
    assert 0 < conflicts < 3


def test_prograd_needs_learned_text() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    transform = ProGrad(10.0)
    transform.start({"weight": weight})
    logits = torch.ones(1, 2) @ weight
    with pytest.raises(InputError, match="needs a prompt method"):
        transform.backward(logits.sum(), StepOutputs(torch.ones(1, 2), torch.tensor([0]), logits))
