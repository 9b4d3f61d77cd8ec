"""cRT: a new classifier on rescaled embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.balancing.second_stages.crt import CRT
from imbalance_vlm.encoders.sources import FeatureSource
from tests.balancing.second_stages.problem import COUNTS, EMBEDDINGS, WIDTH, Loop, PlainHead, fitted, stage_on


def test_crt_does_not_depend_on_the_first_stages_classifier(stage: Stage) -> None:
    other = replace(stage, head=PlainHead(WIDTH, len(COUNTS)).requires_grad_(False))
    assert not torch.equal(other.weight(), stage.weight())
    assert torch.equal(fitted(CRT, other)(EMBEDDINGS), fitted(CRT, stage)(EMBEDDINGS))


def test_crt_depends_on_the_seed(stage: Stage) -> None:
    assert not torch.equal(fitted(CRT, stage, seed=1)(EMBEDDINGS), fitted(CRT, stage, seed=0)(EMBEDDINGS))


def test_crt_does_not_depend_on_the_scale_of_the_embeddings(stage: Stage) -> None:
    assert isinstance(stage.train, FeatureSource)
    views = [view.numpy() / 64 for view in stage.train.views if isinstance(view, Tensor)]
    small = FeatureSource(views, stage.train.labels.numpy(), torch.device("cpu"))
    got = fitted(CRT, replace(stage, train=small, train_classifier=Loop(small)))(EMBEDDINGS / 64)
    torch.testing.assert_close(got, fitted(CRT, stage)(EMBEDDINGS))


def test_crt_accepts_embeddings_of_zeros() -> None:
    zeros = FeatureSource([np.zeros((4, WIDTH), np.float32)], np.array([0, 0, 1, 1]), torch.device("cpu"))
    second = fitted(CRT, stage_on(zeros, PlainHead(WIDTH, 2)))
    assert torch.isfinite(second(EMBEDDINGS)).all()
