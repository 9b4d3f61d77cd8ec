"""The base-to-novel scores against loops over rows, and the predictions that they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.evaluation.base_to_novel import BaseToNovel, base_to_novel, best_epoch
from imbalance_vlm.evaluation.evaluate import evaluate, predict
from imbalance_vlm.evaluation.metrics import base_novel_h
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.heads.text import TextHead
from tests.contracts import refuses
from tests.evaluation.scenes import BASE, NOVEL, WIDTH, Features, directions, predictions, text_features, zero_shot

PROTOCOL = ("base", "novel", "h", "joint", "joint_base", "joint_novel", "novel_class_mean")


def evaluator(head: Head, history: Sequence[dict[str, Any]] = (), **settings: Any) -> BaseToNovel:
    return BaseToNovel(head, Features(BASE, 1), Features(NOVEL, 5, ("x", "y")), text_features, history, **settings)


def accuracy_in_a_loop(labels: Sequence[int], predicted: Sequence[int]) -> float:
    correct = [y == p for y, p in zip(labels, predicted, strict=True)]
    return 100 * sum(correct) / len(correct)


def test_scores_are_their_equations() -> None:
    base = ([0, 0, 0, 1, 2], [0, 0, 2, 1, 1])
    novel = ([0, 0, 0, 1], [0, 0, 0, 0])
    joint = ([*base[0], 3, 3, 3, 4], [0, 0, 2, 4, 1, 3, 0, 1, 2])
    scores = base_to_novel(predictions(*base), predictions(*novel), predictions(*joint))
    b, n = accuracy_in_a_loop(*base), accuracy_in_a_loop(*novel)
    assert (b, n) == (60.0, 75.0)
    expected = {
        "base": b,
        "novel": n,
        "h": 2 / (1 / b + 1 / n),
        "joint": accuracy_in_a_loop(*joint),
        "joint_base": accuracy_in_a_loop(joint[0][:5], joint[1][:5]),
        "joint_novel": accuracy_in_a_loop(joint[0][5:], joint[1][5:]),
        "novel_class_mean": (100 + 0) / 2,
    }
    assert scores == pytest.approx(expected)
    assert tuple(scores) == PROTOCOL
    assert scores["h"] != pytest.approx((b + n) / 2, rel=1e-3)  # not the plain mean


def test_undefined_halves_are_nan() -> None:
    nothing = predictions([], [])
    assert all(math.isnan(value) for value in base_to_novel(nothing, nothing, nothing).values())
    half = base_to_novel(predictions([0], [0]), nothing, predictions([0], [0]))
    assert (half["base"], half["joint"], half["joint_base"]) == (100.0, 100.0, 100.0)
    assert all(math.isnan(half[name]) for name in ("novel", "h", "joint_novel", "novel_class_mean"))
    refuses(lambda: base_to_novel(nothing, nothing, predictions([0], [0])), "joint")


def test_joint_predictions_are_those_of_one_head_over_all_classes() -> None:
    head = zero_shot()
    measure = evaluator(head)
    base, novel = measure.features.of("test"), measure.novel_features.of("test")
    evaluate(head, base, [measure])
    scores = dict(measure.compute())

    novel_head = head.for_names(("x", "y"), text_features)
    assert isinstance(novel_head, TextHead)
    all_classes = TextHead(torch.cat([head.weight, novel_head.weight]), head.logit_scale)
    assert isinstance(novel, FeatureSource)
    shifted = FeatureSource([np.asarray(novel.views[0])], novel.labels.numpy() + BASE, torch.device("cpu"))
    of_base, of_novel = (predict(all_classes, part).correct for part in (base, shifted))
    assert scores["base"] == pytest.approx(100 * predict(head, base).correct.mean())
    assert scores["novel"] == pytest.approx(100 * predict(novel_head, novel).correct.mean())
    assert scores["joint"] == pytest.approx(100 * np.concatenate([of_base, of_novel]).mean())
    assert scores["joint_base"] == pytest.approx(100 * of_base.mean())
    assert scores["joint_novel"] == pytest.approx(100 * of_novel.mean())
    assert scores["joint"] < max(scores["base"], scores["novel"])
    assert tuple(scores) == PROTOCOL


def test_the_test_images_are_read_in_the_encoder_s_own_view() -> None:
    measure = evaluator(zero_shot(), curve=1)
    measure.update(torch.zeros(40 + 7, BASE), torch.zeros(40 + 7, dtype=torch.long))
    assert list(measure.compute())
    assert list(measure.after_epoch(1, 1))
    for features in (measure.features, measure.novel_features):
        assert isinstance(features, Features)
        assert set(features.read) == {("test", "plain")}


class LearnedNames(TextHead):
    """A head that learns something which takes part in every name, as prompt heads do."""

    def for_names(self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor]) -> TextHead:
        head = TextHead(text_features(class_names), self.logit_scale)
        head.weight = self.weight[:1] + head.weight
        return head


def test_a_head_decides_how_it_reads_new_names() -> None:
    learned = evaluator(LearnedNames(directions(BASE, 0), 20.0)).novel_head
    frozen = evaluator(zero_shot()).novel_head
    assert isinstance(learned, TextHead)
    assert isinstance(frozen, TextHead)
    assert torch.equal(frozen.weight, text_features(("x", "y")))
    assert torch.equal(learned.weight, directions(BASE, 0)[:1] + frozen.weight)


def test_a_head_that_reads_no_names_and_a_run_without_novel_classes_are_refused() -> None:
    refuses(lambda: evaluator(LinearHead(WIDTH, BASE)), "names")
    refuses(lambda: BaseToNovel(zero_shot(), Features(BASE, 1), None, text_features, ()), "data.classes")


def test_the_curve_has_rows_at_the_epochs_that_were_asked_for() -> None:
    head = zero_shot()
    measure = evaluator(head, curve=3)
    evaluate(head, measure.features.of("test"), [measure])
    scores = dict(measure.compute())
    row = dict(measure.after_epoch(3, 7))
    assert row == {name: scores[name] for name in ("base", "novel", "h")}
    assert [epoch for epoch in range(1, 8) if dict(measure.after_epoch(epoch, 7))] == [3, 6, 7]
    head.weight.copy_(directions(BASE, 9))
    assert dict(measure.after_epoch(3, 7)) != row  # it measures the head as it is now


def test_without_a_curve_nothing_is_measured_over_the_epochs() -> None:
    measure = evaluator(zero_shot())
    assert not list(measure.after_epoch(1, 1))
    assert isinstance(measure.features, Features)
    assert not measure.features.read


def test_the_best_epoch_is_that_of_h() -> None:
    history: list[dict[str, Any]] = [
        {"epoch": 1, "loss": 3.0},
        {"epoch": 2, "loss": 2.0, "base": 60.0, "novel": 70.0, "h": base_novel_h(60.0, 70.0)},
        {"epoch": 4, "loss": 1.0, "base": 80.0, "novel": 50.0, "h": base_novel_h(80.0, 50.0)},
    ]
    best = {"best_epoch": 2, "best_base": 60.0, "best_novel": 70.0, "best_h": base_novel_h(60, 70)}
    assert best_epoch(history) == best
    assert all(math.isnan(value) for value in best_epoch(history[:1]).values())


def test_the_history_is_read_when_the_scores_are_computed() -> None:
    history: list[dict[str, Any]] = []
    measure = evaluator(zero_shot(), history, curve=1)
    history.append({"epoch": 5, "base": 1.0, "novel": 2.0, "h": 4 / 3})
    evaluate(measure.head, measure.features.of("test"), [measure])
    assert dict(measure.compute())["best_epoch"] == 5
