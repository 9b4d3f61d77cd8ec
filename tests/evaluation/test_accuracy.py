"""The accuracy evaluator against scikit-learn and numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.evaluation.accuracy import Accuracy
from tests.evaluation.scenes import logits_for, predictions, scores_of

COUNTS = [300, 101, 100, 20, 19, 2]


def scores(labels: Sequence[int], predicted: Sequence[int], counts: Sequence[int] = COUNTS) -> dict[str, float]:
    recorded = predictions(labels, predicted)
    return scores_of(Accuracy(LongTail(counts)), logits_for(recorded, len(counts)), torch.from_numpy(recorded.labels))


@pytest.mark.parametrize("seed", range(4))
def test_means_over_images_and_classes_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 200)
    predicted = np.where(rng.random(200) < 0.5, labels, rng.integers(0, 6, 200))
    values = scores(labels.tolist(), predicted.tolist())
    assert values["overall"] == pytest.approx(100 * accuracy_score(labels, predicted))
    assert values["class_mean"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert values["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))


def test_groups_meet_the_exact_boundaries() -> None:
    """Many > 100, few < 20: 100 and 20 are medium."""
    groups = {group: members.tolist() for group, members in LongTail(COUNTS).groups.items()}
    assert groups == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def test_a_group_is_the_unweighted_mean_of_its_classes() -> None:
    values = scores([0] * 10 + [1] * 1 + [2, 3, 4, 5], [0] * 5 + [5] * 5 + [1] * 1 + [2, 0, 4, 0])
    assert (values["many"], values["medium"], values["few"]) == (75, 50, 50)
    assert values["worst_class"] == 0
    assert values["harmonic_mean"] == values["geometric_mean"] == 0


def test_the_harmonic_mean_can_have_a_floor() -> None:
    recorded = predictions([0, 0, 1], [0, 1, 0])
    evaluator = Accuracy(LongTail([9, 5, 5]), harmonic_floor=0.001)
    values = scores_of(evaluator, logits_for(recorded, 3), torch.from_numpy(recorded.labels))
    assert values["harmonic_mean"] == pytest.approx(2 / (1 / 50 + 1 / 0.001))


def test_an_empty_group_and_classes_without_test_images_are_left_out() -> None:
    values = scores([0, 1], [0, 1], [500, 200, 150])
    assert math.isnan(values["medium"])
    assert math.isnan(values["few"])
    assert values["many"] == values["class_mean"] == values["worst_class"] == 100


def test_targets_of_other_types_are_accepted_or_refused() -> None:
    evaluator = Accuracy(LongTail([2, 1]))
    evaluator.update(torch.eye(2), [0, 1])
    assert dict(evaluator.compute())["overall"] == 100.0
    with pytest.raises(InputError, match=r"one whole number for each row of the logits, got shape \(2,\)"):
        evaluator.update(torch.eye(2), torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match="`logits` must be a tensor"):
        evaluator.update([[0.0, 1.0]], [0])
