"""Metrics against scikit-learn, SciPy and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score, recall_score

from imbalance_vlm.evaluation import metrics
from tests.evaluation.scenes import predictions

CLASSES = 6


def sample(seed: int, size: int = 200, classes: int = CLASSES) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and predictions, right about half the time."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    return labels, np.where(rng.random(size) < 0.5, labels, rng.integers(0, classes, size))


@pytest.mark.parametrize("seed", range(4))
def test_per_class_accuracy_is_recall(seed: int) -> None:
    labels, predicted = sample(seed)
    expected = 100 * recall_score(labels, predicted, average=None, labels=range(CLASSES))
    np.testing.assert_allclose(metrics.per_class_accuracy(labels, predicted, CLASSES), expected)


def test_a_class_without_test_images_is_nan() -> None:
    accuracy = metrics.per_class_accuracy(np.array([0, 0]), np.array([0, 1]), 3)
    assert accuracy[0] == 50
    assert np.isnan(accuracy[1:]).all()


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_is_scikit_learns(seed: int) -> None:
    labels, predicted = sample(seed)
    assert metrics.macro_f1(labels, predicted) == pytest.approx(100 * f1_score(labels, predicted, average="macro"))


def test_macro_f1_leaves_out_classes_without_test_images_but_counts_predictions_of_them() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 5, 1, 1])
    expected = f1_score(labels, predicted, average="macro", labels=[0, 1])
    assert metrics.macro_f1(labels, predicted) == pytest.approx(100 * expected)


@pytest.mark.parametrize("seed", range(4))
def test_means_over_classes_are_scipys(seed: int) -> None:
    accuracy = np.random.default_rng(seed).uniform(1, 100, 20)
    assert metrics.harmonic_mean(accuracy) == pytest.approx(stats.hmean(accuracy))
    assert metrics.geometric_mean(accuracy) == pytest.approx(stats.gmean(accuracy))
    assert metrics.mean(accuracy) == pytest.approx(accuracy.mean())


@pytest.mark.parametrize("mean", [metrics.harmonic_mean, metrics.geometric_mean])
def test_a_class_that_is_never_recognised_makes_these_means_zero(mean: object) -> None:
    assert mean(np.array([50.0, 0.0, 80.0])) == 0  # type: ignore[operator]


@pytest.mark.parametrize("mean", [metrics.harmonic_mean, metrics.geometric_mean, metrics.mean])
def test_means_leave_out_nan(mean: object) -> None:
    assert mean(np.array([40.0, np.nan, 40.0])) == pytest.approx(40)  # type: ignore[operator]
    assert math.isnan(mean(np.array([np.nan])))  # type: ignore[operator]
    assert math.isnan(mean(np.array([])))  # type: ignore[operator]


def test_h_is_the_harmonic_mean_unless_a_half_is_undefined() -> None:
    assert metrics.base_novel_h(0.0, 0.0) == 0.0
    assert metrics.base_novel_h(0.0, 90.0) == 0.0
    assert math.isnan(metrics.base_novel_h(math.nan, 90.0))
    assert metrics.base_novel_h(69.34, 74.22) == pytest.approx(71.70, abs=0.005)  # CLIP's published row
    assert metrics.base_novel_h(30.0, 60.0) == pytest.approx(stats.hmean([30.0, 60.0]))
    assert metrics.base_novel_h(30.0, 60.0) == pytest.approx(metrics.harmonic_mean(np.array([30.0, 60.0])))


def test_accuracy_is_over_images() -> None:
    assert metrics.accuracy(np.array([True, True, False, True])) == 75
    assert math.isnan(metrics.accuracy(np.array([], bool)))


def ece_in_a_loop(confidence: list[float], correct: list[bool], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, p in enumerate(confidence) if b / bins < p <= (b + 1) / bins]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return 100 * total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error(bins: int) -> None:
    rng = np.random.default_rng(bins)
    confidence = rng.uniform(0.01, 1, 300)
    correct = rng.random(300) < confidence**2
    expected = ece_in_a_loop(confidence.tolist(), correct.tolist(), bins)
    assert metrics.expected_calibration_error(confidence, correct, bins) == pytest.approx(expected)


def test_full_confidence_falls_into_the_last_bin() -> None:
    assert metrics.expected_calibration_error(np.array([1.0, 1.0]), np.array([True, False]), 15) == 50


def test_rows_of_predictions_are_taken_together() -> None:
    recorded = predictions([0, 1, 2], [0, 2, 2], [0.5, 0.6, 0.7], [1.0, 2.0, 3.0])
    for rows in (slice(1, None), np.array([False, True, True])):
        part = recorded[rows]
        assert (part.labels.tolist(), part.predicted.tolist()) == ([1, 2], [2, 2])
        assert (part.confidence.tolist(), part.nll.tolist()) == ([0.6, 0.7], [2.0, 3.0])
        assert part.correct.tolist() == [False, True]
