"""Dot regression on embeddings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.balancing.losses.factory import create_loss
from tests.balancing.losses import oracles


def test_dot_regression_compares_with_the_length_of_the_embedding() -> None:
    """Value and gradient of (h.m_y - |h|)^2 / (2 |h|), |h| being a constant; nothing comes from the other classes."""
    prototypes = torch.eye(3, 4, dtype=torch.float64)
    embeddings = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(6) % 3
    loss = create_loss("etf_dot_regression", [5, 3, 2], reduction="none")
    values = loss(embeddings @ prototypes.t(), targets, embeddings)
    lengths = [math.hypot(*row) for row in embeddings.tolist()]
    for value, row, y, length in zip(values.tolist(), embeddings.tolist(), targets.tolist(), lengths, strict=True):
        assert value == pytest.approx(oracles.etf_dot_regression(row[:3], y, [5, 3, 2], length), rel=1e-10)
    (grad,) = torch.autograd.grad(values.sum(), embeddings)
    for row, got, y, length in zip(embeddings.tolist(), grad.tolist(), targets.tolist(), lengths, strict=True):
        wanted = [(row[y] - length) / length if column == y else 0.0 for column in range(4)]
        np.testing.assert_allclose(got, wanted, rtol=1e-10)
    along = torch.tensor([[0.0, 7.0, 0.0, 0.0]], dtype=torch.float64)
    assert float(loss(along @ prototypes.t(), torch.tensor([1]), along)) == 0.0
    nothing = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    value = loss(nothing @ prototypes.t(), torch.tensor([1]), nothing)
    assert value.tolist() == [0.0]
    assert torch.isfinite(torch.autograd.grad(value.sum(), nothing)[0]).all()


def test_value_is_kept_at_large_logits() -> None:
    value = create_loss("etf_dot_regression", [5, 5, 5])(torch.tensor([[1e4, -20.0, -1e4]]), torch.tensor([0]))
    assert float(value) == pytest.approx((1e4 - 1) ** 2 / 2, rel=1e-6)


def test_dot_regression_refuses_embeddings_of_another_batch() -> None:
    with pytest.raises(InputError, match=r"`embeddings` must be \(2, d\), one row per sample, got \(3, 4\)"):
        create_loss("etf_dot_regression", [5, 3])(torch.zeros(2, 2), torch.tensor([0, 1]), torch.zeros(3, 4))
