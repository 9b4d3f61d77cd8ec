"""tau-normalisation: the choice of tau, and its special cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.balancing.second_stages.tau_norm import TauNorm
from tests.balancing.second_stages import oracles
from tests.balancing.second_stages.problem import COUNTS, EMBEDDINGS, WIDTH, PlainHead, draws, fitted, rows_of


def test_tau_is_that_of_a_brute_force_search(stage: Stage) -> None:
    wanted = oracles.best_tau(
        rows_of(stage.validation), stage.validation.labels.tolist() if stage.validation else [], stage.weight().tolist()
    )
    assert 0 < wanted < 2, "the problem must leave something to choose"
    second = TauNorm(WIDTH, len(COUNTS))
    assert second.needs_validation
    assert second.fit(stage) == {"tau": wanted}
    assert torch.equal(second(EMBEDDINGS), fitted(TauNorm, stage, tau=wanted)(EMBEDDINGS))


def test_tau_weighs_classes_equally_on_a_skewed_validation_set(stage: Stage) -> None:
    """By the mean over images the head classes would choose another tau."""
    skewed = replace(stage, validation=draws(COUNTS, seed=3))
    rows, labels = rows_of(skewed.validation), torch.tensor(np.repeat(np.arange(len(COUNTS)), COUNTS))
    wanted = oracles.best_tau(rows, labels.tolist(), stage.weight().tolist())
    right = {}
    for step in range(21):
        logits = torch.tensor([oracles.tau_norm(f, stage.weight().tolist(), step / 10) for f in rows])
        right[step / 10] = int((logits.argmax(1) == labels).sum())
    assert right[wanted] < max(right.values())
    assert TauNorm(WIDTH, len(COUNTS)).fit(skewed) == {"tau": wanted}


def test_all_taus_share_one_matrix_product(stage: Stage, products: list[int]) -> None:
    TauNorm(WIDTH, len(COUNTS)).fit(stage)
    assert products == [30 * len(COUNTS) * len(COUNTS)]


def test_only_an_open_tau_needs_a_validation_set(stage: Stage) -> None:
    without = replace(stage, validation=None)
    fixed = TauNorm(WIDTH, len(COUNTS), tau=0.5)
    assert not fixed.needs_validation
    assert fixed.fit(without) == {}
    with pytest.raises(InputError, match="set tau"):
        TauNorm(WIDTH, len(COUNTS)).fit(without)


def test_tau_zero_keeps_the_weights_and_drops_the_bias(stage: Stage) -> None:
    torch.testing.assert_close(fitted(TauNorm, stage, tau=0.0)(EMBEDDINGS), EMBEDDINGS @ stage.weight().t())


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0, None])
def test_zero_row_gives_zero_logits(tau: float | None, stage: Stage) -> None:
    head = PlainHead(WIDTH, len(COUNTS))
    with torch.no_grad():
        head.layer.weight[3] = 0
    logits = fitted(TauNorm, replace(stage, head=head.requires_grad_(False)), tau=tau)(EMBEDDINGS)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits[:, 3], torch.zeros(len(EMBEDDINGS)))
