"""Each loss against its oracle, and each comparison against a wrong loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError, LongTail, catalogue
from imbalance_vlm.balancing.losses.factory import create_loss
from tests.balancing.oracles import CASES, Case

SAMPLES = 10


def assert_matches_oracle(case: Case, loss: str, settings: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (SAMPLES, len(case.counts)))
    targets = np.arange(SAMPLES) % len(case.counts)
    wanted = [
        case.oracle(row.tolist(), int(y), case.counts, **case.settings) for row, y in zip(logits, targets, strict=True)
    ]
    made = create_loss(loss, case.counts, **settings, reduction="none")
    got = made(torch.from_numpy(logits), torch.from_numpy(targets))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_its_equation(case: Case) -> None:
    assert_matches_oracle(case, case.loss, case.settings)


@pytest.mark.parametrize("case", [case for case in CASES if case.stand_in], ids=str)
def test_the_comparison_rejects_a_wrong_loss(case: Case) -> None:
    assert case.stand_in is not None
    with pytest.raises(AssertionError):
        assert_matches_oracle(case, *case.stand_in)


@pytest.mark.parametrize("name", catalogue.LOSSES.names())
def test_every_loss_has_an_oracle_that_can_fail(name: str) -> None:
    assert any(case.loss == name and case.stand_in for case in CASES), f"add '{name}' to tests/balancing/oracles.py"


def test_an_empty_class_takes_no_part_in_the_prior_based_losses() -> None:
    """The value is that of the same problem without the class, and its logit gets no gradient."""
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, 2, 0])
    for name in ("balanced_softmax", "logit_adjustment"):
        value = create_loss(name, LongTail([30, 0, 4], allow_empty=True), label_smoothing=0.1)(logits, targets)
        without = create_loss(name, [30, 4], label_smoothing=0.1)(logits[:, [0, 2]], targets // 2)
        torch.testing.assert_close(value, without)
        (grad,) = torch.autograd.grad(value, logits)
        assert torch.all(grad[:, 1] == 0)


def test_focal_keeps_its_digits_where_the_sample_is_right() -> None:
    """At p_y = 1 - 1e-12 the loss is about 1e-36, not 0 and not noise."""
    margin = -math.log(1e-12)
    value = create_loss("focal", [1, 1])(torch.tensor([[margin, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert float(value) == pytest.approx(1e-36, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("focall", {}, ["unknown loss 'focall'", "Did you mean 'focal'?", "cross_entropy"]),
        ("focal", {"gama": 1}, ["unknown setting `gama`", "Did you mean 'gamma'?"]),
        ("focal", {"gamma": -1}, ["`gamma` must be a number >= 0, got -1"]),
        ("logit_adjustment", {"tau": "1", "label_smoothing": 1.0}, ["`tau`", "`label_smoothing`", ">= 0 and < 1"]),
    ],
)
def test_wrong_settings_are_refused_in_words(name: str, settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        create_loss(name, [2, 1], **settings)
    assert all(word in str(error.value) for word in words), str(error.value)
