"""The counts and the factors of the seesaw loss."""

from __future__ import annotations

import torch

from imbalance_vlm.balancing.losses.factory import create_loss

SKEWED = (torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.0, 3.0], [1.0, 1.0, 1.0]]).double(), torch.tensor([0, 0, 2]))


def test_seesaw_counts_what_it_sees_in_training_only() -> None:
    loss = create_loss("seesaw", [5, 5, 5])
    for _ in range(2):
        loss(*SKEWED)
    loss.eval()(*SKEWED)
    assert loss.get_buffer("seen").tolist() == [4, 0, 2]


def test_seesaw_passes_no_gradient_through_its_factors() -> None:
    """d L / d z = p' - onehot with p' the softmax of the shifted logits: M and S count as constants."""
    logits = SKEWED[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(create_loss("seesaw", [5, 5, 5], reduction="none")(logits, SKEWED[1]).sum(), logits)
    torch.testing.assert_close(grad.sum(1), torch.zeros(3).double())
    hit = 1.0 + grad.gather(1, SKEWED[1][:, None]).squeeze(1)  # p'_y
    values = create_loss("seesaw", [5, 5, 5], reduction="none")(*SKEWED)
    torch.testing.assert_close(hit, (-values).exp())


def test_the_floor_of_seesaw_bounds_its_compensation() -> None:
    """-log of the loss with S_yj = max(1, p_j / max(p_y, floor))^q; M is 1 for equal counts."""
    logits = torch.tensor([[6.0, 0.0, 1.0]], dtype=torch.float64)
    p = logits.softmax(1)[0]
    loss = create_loss("seesaw", [5, 5, 5], q=2.0, p=0.0, floor=0.01, reduction="none")
    for target, true in ((1, max(float(p[1]), 0.01)), (0, float(p[0]))):
        factors = torch.tensor([max(1.0, float(p[j]) / true) ** 2.0 for j in range(3)], dtype=torch.float64)
        factors[target] = 1.0
        wanted = -torch.log(p[target] / (factors * p).sum())
        torch.testing.assert_close(loss(logits, torch.tensor([target]))[0], wanted)
