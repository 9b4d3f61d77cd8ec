"""Distillation from the frozen model against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from imbalance_vlm.balancing.regularizers.distill import divergence


def test_divergence_computes_its_equation() -> None:
    rng = np.random.default_rng(0)
    z, z0, temperature = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)) * 3, 2.0
    wanted = []
    for row, row0 in zip(z / temperature, z0 / temperature, strict=True):
        p, q = (np.exp(r) / sum(np.exp(value) for value in r) for r in (row, row0))
        wanted.append(temperature**2 * sum(q[c] * np.log(q[c] / p[c]) for c in range(4)))
    got = divergence(torch.from_numpy(z), torch.from_numpy(z0), temperature)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9)
    backwards = divergence(torch.from_numpy(z0), torch.from_numpy(z), temperature)
    assert not np.allclose(backwards.numpy(), wanted), "it is not symmetric"
    assert divergence(torch.from_numpy(z), torch.from_numpy(z)).abs().max() < 1e-12
    extreme = divergence(torch.tensor([[1e4, 0.0]]), torch.tensor([[-1e4, 0.0]]))
    assert torch.isfinite(extreme).all()


def test_gradient_of_the_divergence_pulls_towards_the_frozen_model() -> None:
    logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
    divergence(logits, torch.zeros(1, 2)).sum().backward()
    expected = logits.detach().softmax(1) - 0.5  # of KL(q || softmax(z)) by z: softmax(z) - q
    torch.testing.assert_close(logits.grad, expected)
