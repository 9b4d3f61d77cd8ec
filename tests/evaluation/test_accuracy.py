"""The accuracy evaluator against scikit-learn and numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from imbalance_vlm import LongTail
from imbalance_vlm.evaluation.accuracy import Accuracy
from tests.evaluation.scenes import logits_for, predictions, scores_of

COUNTS = [300, 101, 100, 20, 19, 2]


def scores(labels: Sequence[int], predicted: Sequence[int], counts: Sequence[int] = COUNTS) -> dict[str, float]:
    made = predictions(labels, predicted)
    return scores_of(Accuracy(LongTail(counts)), logits_for(made, len(counts)), torch.from_numpy(made.labels))


@pytest.mark.parametrize("seed", range(4))
def test_means_over_images_and_classes_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 200)
    predicted = np.where(rng.random(200) < 0.5, labels, rng.integers(0, 6, 200))
    made = scores(labels.tolist(), predicted.tolist())
    assert made["overall"] == pytest.approx(100 * accuracy_score(labels, predicted))
    assert made["class_mean"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert made["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))


def test_groups_meet_the_exact_boundaries() -> None:
    """Many > 100, few < 20: 100 and 20 are medium."""
    groups = {group: members.tolist() for group, members in LongTail(COUNTS).groups.items()}
    assert groups == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def test_a_group_is_the_unweighted_mean_of_its_classes() -> None:
    made = scores([0] * 10 + [1] * 1 + [2, 3, 4, 5], [0] * 5 + [5] * 5 + [1] * 1 + [2, 0, 4, 0])
    assert (made["many"], made["medium"], made["few"]) == (75, 50, 50)
    assert made["worst_class"] == 0
    assert made["harmonic_mean"] == made["geometric_mean"] == 0


def test_an_empty_group_and_classes_without_test_images_are_left_out() -> None:
    made = scores([0, 1], [0, 1], [500, 200, 150])
    assert math.isnan(made["medium"])
    assert math.isnan(made["few"])
    assert made["many"] == made["class_mean"] == made["worst_class"] == 100
