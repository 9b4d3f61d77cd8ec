"""The estimate of an unknown prior, and the targets that a prior shift accepts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.post_hoc.prior_shift import PriorShift, estimate_prior
from tests.balancing.post_hoc.problem import COUNTS, TAIL, TRAIN, C, tailed


def oracle_estimate(rows: list[list[float]], source: list[float], iterations: int) -> list[float]:
    """Expectation-maximisation in loops."""
    q = list(source)
    for _ in range(iterations):
        sums = [0.0] * len(q)
        for row in rows:
            scores = [qc / sc * math.exp(lp) for qc, sc, lp in zip(q, source, row, strict=True)]
            for c, score in enumerate(scores):
                sums[c] += score / sum(scores)
        q = [total / len(rows) for total in sums]
    return q


def drawn_from(target: list[float], rows: int = 4000) -> tuple[Tensor, Tensor]:
    """Exact log posteriors under the training prior, of points on a line drawn from `target`, with their labels."""
    rng = np.random.default_rng(1)
    labels = rng.choice(C, rows, p=np.array(target) / sum(target))
    x = 3.0 * labels + rng.normal(0, 1, rows)
    likelihood = -0.5 * (x[:, None] - 3.0 * np.arange(C)) ** 2
    return torch.from_numpy(likelihood + np.log(TRAIN)).log_softmax(1), torch.from_numpy(labels)


@pytest.mark.parametrize("iterations", [1, 7])
def test_estimate_follows_its_equation(iterations: int) -> None:
    log_probs = tailed(30)[0].log_softmax(1)
    wanted = oracle_estimate(log_probs.tolist(), TRAIN, iterations)
    got = estimate_prior(log_probs, torch.tensor(TRAIN, dtype=torch.float64), iterations)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10)
    assert not np.allclose(TRAIN, wanted, rtol=1e-2), "the comparison would accept the prior it starts from"


def test_estimate_finds_a_prior_that_the_logits_do_not_contain() -> None:
    target = [0.1, 0.1, 0.2, 0.2, 0.4]
    log_probs, labels = drawn_from(target)
    correction = PriorShift(TAIL, target="estimate")
    chosen = correction.fit(log_probs, labels)
    np.testing.assert_allclose(correction.given.numpy(), target, atol=0.02)
    assert chosen == {"target_lowest": float(correction.given.min()), "target_highest": float(correction.given.max())}
    before, after = ((logits.argmax(1) == labels).double().mean() for logits in (log_probs, correction(log_probs)))
    assert after > before
    unlabelled = PriorShift(TAIL, target="estimate")
    unlabelled.fit(log_probs, None)
    assert torch.equal(unlabelled.given, correction.given), "the estimate must not use labels"


def test_estimate_on_training_shares_stays_close_to_them() -> None:
    np.testing.assert_allclose(estimate_prior(drawn_from(TRAIN)[0], torch.tensor(TRAIN).double()), TRAIN, atol=0.02)


def test_estimate_accepts_a_class_that_never_occurs() -> None:
    log_probs = drawn_from([0.5, 0.0, 0.2, 0.3, 0.0])[0]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        correction = PriorShift(TAIL, target="estimate", iterations=2000)
        correction.fit(log_probs.to(dtype), None)
        assert float(correction.given[4]) < 1e-3
        assert torch.isfinite(correction(log_probs.to(dtype))).all()


def test_estimate_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="at least one row"):
        estimate_prior(torch.zeros(0, C), torch.tensor(TRAIN))


# -- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ([1.0, 2.0], "5 positive numbers, one per class, got 2"),
        ([1.0, 1.0, 0.0, 1.0, 1.0], r"got 0.0 for class 2 \('cup'\)"),
        ([1.0, 1.0, 1.0, -2.0, 1.0], "got -2.0 for class 3"),
        ([math.nan, 1.0, 1.0, 1.0, 1.0], "got nan for class 0"),
        ([math.inf, 1.0, 1.0, 1.0, 1.0], "got inf for class 0"),
        ("test", "'uniform', 'train', 'inverse' or 'estimate', or a list of numbers, got 'test'"),
    ],
)
def test_target_that_is_not_a_prior_is_refused(target: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        PriorShift(LongTail(COUNTS, ("ant", "bee", "cup", "dog", "emu")), target=target)
