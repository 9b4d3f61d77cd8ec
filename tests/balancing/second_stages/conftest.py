"""The stage that second stages are fitted on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.balancing.second_stages.base import Stage, StageTraining
from imbalance_vlm.encoders.sources import FeatureSource
from tests.balancing.second_stages.problem import COUNTS, WIDTH, Loop, PlainHead, draws, stage_on


@pytest.fixture(scope="module")
def trained() -> Stage:
    """A long tail of Gaussians, on which a head was trained with cross-entropy."""
    source = draws(COUNTS, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = PlainHead(WIDTH, len(COUNTS))
        loss = create_loss("cross_entropy", COUNTS)
        Loop(source)(head, loss, InstanceSampler, StageTraining(epochs=60, lr=0.1, batch_size=64))
    return stage_on(source, head, draws([30] * len(COUNTS), seed=1))


@pytest.fixture
def stage(trained: Stage) -> Stage:
    """The same with a new loop, which has recorded no calls."""
    assert isinstance(trained.train, FeatureSource)
    return replace(trained, train_classifier=Loop(trained.train))
