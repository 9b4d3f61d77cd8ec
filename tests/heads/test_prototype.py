"""Fixed prototypes against loops from their equations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.etf_dot_regression import ETFDotRegression
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.prototype import PrototypeHead
from tests.heads.prototype_oracles import (
    BATCH,
    CLASSES,
    COUNTS,
    SETTINGS,
    WIDTH,
    Array,
    features,
    guided_logits,
    prototype_logits,
    stirred,
    targets,
)


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_logits_follow_their_equation(build: type[Head], settings: dict[str, Any]) -> None:
    head = stirred(build, settings)
    wanted = (prototype_logits if build is PrototypeHead else guided_logits)(head, features())  # type: ignore[operator]
    torch.testing.assert_close(head(features()).double().detach(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    trivial = features() @ torch.ones(WIDTH, CLASSES)
    assert not torch.allclose(trivial.double(), torch.from_numpy(wanted), rtol=0.1)


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_training_changes_parameters_and_moving_means_only(build: type[Head], settings: dict[str, Any]) -> None:
    """With weight decay at 1, a prototype that were a parameter would be gone after a few steps."""
    head = stirred(build, settings)
    before = copy.deepcopy(head.state_dict())
    objective = Objective(head, create_loss("cross_entropy", COUNTS))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        objective(features(), targets()).backward()
        optimizer.step()
    trained = {key for key, _ in head.named_parameters()}
    for key, value in head.state_dict().items():
        moves = key in trained or (key == "means" and settings.get("guide") != "fixed")
        assert torch.equal(value, before[key]) is not moves, key


@pytest.mark.parametrize("settings", [{}, {"map": "adapter"}])
def test_a_prototype_head_starts_from_the_features_themselves(settings: dict[str, Any]) -> None:
    head = PrototypeHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), **settings)
    torch.testing.assert_close(head.embed(features()), F.normalize(features(), dim=-1))
    raw = PrototypeHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), normalise=False, **settings)
    torch.testing.assert_close(raw.embed(features()).norm(dim=1), torch.full((BATCH,), WIDTH**0.5))


def dot_regression_gradient(embeddings: Array, labels: Array, prototypes: Array) -> Array:
    """Of mean_i (h_i . m - |h_i|)^2 / (2 |h_i|), |h| held: (cos(h_i, m) - 1) m / N, with m the label's prototype."""
    result = np.zeros_like(embeddings)
    for i, (h, y) in enumerate(zip(embeddings, labels, strict=True)):
        m = prototypes[y]
        cosine = sum(a * b for a, b in zip(h, m, strict=True)) / np.sqrt((h * h).sum())
        result[i] = (cosine - 1.0) * m / len(embeddings)
    return result


def test_dot_regression_pulls_each_embedding_to_its_prototype_only() -> None:
    head = stirred(PrototypeHead, {"normalise": False}).double()
    embeddings = head.embed(features().double()).detach().requires_grad_()
    loss = ETFDotRegression(LongTail(COUNTS))(head.classify(embeddings), targets(), embeddings)
    (got,) = torch.autograd.grad(loss, embeddings)
    wanted = dot_regression_gradient(embeddings.detach().numpy(), targets().numpy(), head.prototypes.numpy())
    torch.testing.assert_close(got, torch.from_numpy(wanted))
    (other,) = torch.autograd.grad(F.cross_entropy(head.classify(embeddings), targets()), embeddings)
    assert not torch.allclose(got, other, rtol=0.1)


def onto_the_simplex(**settings: Any) -> Tensor:
    """Cosines (3, 3) between three classes, close together at first, after dot regression."""
    torch.manual_seed(0)
    head = PrototypeHead(WIDTH, 3, create_prototypes(3, WIDTH), **settings)
    centres = F.normalize(torch.ones(WIDTH) + 0.4 * torch.randn(3, WIDTH), dim=1)
    loss, optimizer = ETFDotRegression(LongTail((9, 3, 1))), torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(200):
        embeddings = head.embed(centres)
        optimizer.zero_grad()
        loss(head.classify(embeddings), torch.arange(3), embeddings).backward()
        optimizer.step()
    unit = F.normalize(head.embed(centres), dim=1)
    return (unit @ unit.t()).detach()


def test_dot_regression_brings_unit_embeddings_onto_the_simplex() -> None:
    """Raw ones only get longer along their prototype: what they have across it stays, as nothing pulls at it."""
    wanted = torch.full((3, 3), -0.5).fill_diagonal_(1.0)
    torch.testing.assert_close(onto_the_simplex(scale=1.0), wanted, rtol=0, atol=0.03)
    assert (onto_the_simplex(normalise=False) - wanted).abs().max() > 0.5


def test_more_classes_than_twice_the_width_are_accepted() -> None:
    classes = 3 * WIDTH
    head = PrototypeHead(WIDTH, classes, create_prototypes(classes, WIDTH, steps=20))
    logits = head(features())
    assert logits.shape == (BATCH, classes)
    F.cross_entropy(logits, torch.arange(BATCH)).backward()
    assert head.map.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("rows", [torch.zeros(CLASSES, WIDTH + 1), torch.zeros(CLASSES - 1, WIDTH)])
def test_prototypes_that_do_not_fit_are_refused(rows: Tensor) -> None:
    with pytest.raises(InputError, match=r"`prototypes` must have shape \(5, 8\), one row per class, got"):
        PrototypeHead(WIDTH, CLASSES, rows)
