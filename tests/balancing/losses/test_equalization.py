"""The sigmoids of the equalization loss."""

from __future__ import annotations

import math

import pytest
import torch

from imbalance_vlm.balancing.losses.factory import create_loss


def test_rare_classes_see_no_negatives_of_others() -> None:
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    for target, wanted in ((0, [-0.5, 0.5, 0.0]), (2, [0.5, 0.5, -0.5])):
        value = create_loss("equalization", [500, 490, 10], lam=0.1)(logits, torch.tensor([target]))
        (grad,) = torch.autograd.grad(value, logits)
        assert grad[0].tolist() == wanted


def test_small_terms_survive_beside_large_ones() -> None:
    """Terms of 1e4 beside terms of 1e-9: neither may be lost."""
    logits = torch.tensor([[1e4, -20.0, -1e4]])
    value = create_loss("equalization", [5, 5, 5])(logits, torch.tensor([0]))
    assert float(value) == pytest.approx(math.log1p(math.exp(-20.0)), rel=1e-5)
