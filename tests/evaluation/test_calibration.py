"""The calibration evaluator: its numbers are those of the images in each group."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from imbalance_vlm import LongTail
from imbalance_vlm.evaluation.calibration import Calibration
from tests.evaluation.scenes import scores_of
from tests.evaluation.test_metrics import ece_in_a_loop

COUNTS = [300, 101, 100, 20, 19, 2]
GROUPS = {"": range(6), "_many": (0, 1), "_medium": (2, 3), "_few": (4, 5)}


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_each_group_is_measured_on_its_images(bins: int) -> None:
    logits, labels = 2 * torch.randn(80, 6), torch.arange(80) % 6
    scores = scores_of(Calibration(LongTail(COUNTS), bins=bins), logits, labels)
    confidence, predicted = logits.softmax(1).max(1)
    for suffix, classes in GROUPS.items():
        rows = torch.tensor([int(label) in classes for label in labels])
        correct = (predicted == labels)[rows].tolist()
        expected = ece_in_a_loop(confidence[rows].tolist(), correct, bins)
        assert scores[f"ece{suffix}"] == pytest.approx(expected, rel=1e-4)
        assert scores[f"nll{suffix}"] == pytest.approx(float(F.cross_entropy(logits[rows], labels[rows])), rel=1e-5)


def test_an_empty_group_is_nan() -> None:
    scores = scores_of(Calibration(LongTail([500, 200])), torch.eye(2), torch.arange(2))
    for name in ("ece_medium", "ece_few", "nll_medium", "nll_few"):
        assert math.isnan(scores[name]), name
    assert np.isfinite(scores["nll_many"])
