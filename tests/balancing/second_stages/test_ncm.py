"""NCM: empty classes, scale, centring and batches."""

from __future__ import annotations

import pytest
import torch

from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.balancing.second_stages.ncm import NCM
from imbalance_vlm.balancing.selection import class_mean_accuracy
from tests.balancing.second_stages.problem import COUNTS, EMBEDDINGS, WIDTH, PlainHead, draws, fitted, stage_on


def test_ncm_never_predicts_a_class_without_images() -> None:
    for metric in ("cosine", "euclidean"):
        second = fitted(NCM, stage_on(draws([20, 0, 6], 0), PlainHead(WIDTH, 3)), metric=metric)
        logits = second(EMBEDDINGS)
        assert torch.isneginf(logits[:, 1]).all()
        assert torch.isfinite(logits.softmax(1)).all()


def test_ncm_scale_changes_confidence_but_no_prediction(stage: Stage) -> None:
    for metric in ("cosine", "euclidean"):
        sure, unsure = (fitted(NCM, stage, metric=metric, scale=scale)(EMBEDDINGS) for scale in (50.0, 1.0))
        assert torch.equal(sure.argmax(1), unsure.argmax(1))
        assert sure.softmax(1).max() > unsure.softmax(1).max()


def test_centring_separates_classes_with_a_large_common_part() -> None:
    stage = stage_on(draws(COUNTS, seed=0, offset=30.0), PlainHead(WIDTH, len(COUNTS)))
    embeddings, labels = next(draws([100] * len(COUNTS), 2, offset=30.0).batches([torch.arange(600)]))
    centred, plain = (
        class_mean_accuracy(fitted(NCM, stage, metric="euclidean", centre=centre)(embeddings), labels)
        for centre in (True, False)
    )
    assert centred > plain + 2


def test_class_sums_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    wanted = fitted(NCM, stage)(EMBEDDINGS)
    monkeypatch.setattr("imbalance_vlm.balancing.second_stages.base.ROWS", 7)
    torch.testing.assert_close(fitted(NCM, stage)(EMBEDDINGS), wanted)
