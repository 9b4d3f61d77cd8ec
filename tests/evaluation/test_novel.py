"""The base-to-novel scores against loops over rows, and the predictions behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from imbalance_vlm.evaluation.novel import (
    NOVEL_SCORES,
    average_h,
    base_to_novel,
    best_epoch,
    curve,
    curve_row,
    harmonic,
    head_over,
    novel_predictions,
    transfer,
)
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.evaluation.metrics import Predictions
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.heads.text import TextHead
from tests.contracts import refuses

BASE, NOVEL, DIM = 3, 2, 6


def predictions(labels: Sequence[int], predicted: Sequence[int]) -> Predictions:
    nothing = np.zeros(len(labels))
    return Predictions(np.array(labels, np.int64), np.array(predicted, np.int64), nothing, nothing)


def directions(classes: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(classes, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def text(names: Sequence[str]) -> Tensor:
    return directions(len(names), seed=len("".join(names)))


def source(classes: int, count: int, seed: int) -> FeatureSource:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, DIM)).astype(np.float32)
    return FeatureSource([features], rng.integers(0, classes, count), torch.device("cpu"))


def zero_shot() -> TextHead:
    return TextHead(DIM, BASE, directions(BASE, 0), scale=20.0)


def accuracy_in_a_loop(labels: Sequence[int], predicted: Sequence[int]) -> float:
    right = [y == p for y, p in zip(labels, predicted, strict=True)]
    return 100 * sum(right) / len(right)


def test_scores_are_their_equations() -> None:
    base = ([0, 0, 0, 1, 2], [0, 0, 2, 1, 1])
    novel = ([0, 0, 0, 1], [0, 0, 0, 0])
    joint = ([*base[0], 3, 3, 3, 4], [0, 0, 2, 4, 1, 3, 0, 1, 2])
    found = base_to_novel(predictions(*base), predictions(*novel), predictions(*joint))
    b, n = accuracy_in_a_loop(*base), accuracy_in_a_loop(*novel)
    assert (b, n) == (60.0, 75.0)
    wanted = {
        "base": b,
        "novel": n,
        "h": 2 / (1 / b + 1 / n),
        "joint": accuracy_in_a_loop(*joint),
        "joint_base": accuracy_in_a_loop(joint[0][:5], joint[1][:5]),
        "joint_novel": accuracy_in_a_loop(joint[0][5:], joint[1][5:]),
        "novel_class_mean": (100 + 0) / 2,
    }
    assert found == pytest.approx(wanted)
    assert tuple(found) == NOVEL_SCORES
    assert found["h"] != pytest.approx((b + n) / 2, rel=1e-3)  # not the plain mean


def test_h_where_it_is_extreme_or_undefined() -> None:
    assert harmonic(0.0, 0.0) == 0.0
    assert harmonic(0.0, 90.0) == 0.0
    assert math.isnan(harmonic(math.nan, 90.0))
    assert harmonic(69.34, 74.22) == pytest.approx(71.70, abs=0.005)  # CLIP's published row
    nothing = predictions([], [])
    found = base_to_novel(nothing, nothing, nothing)
    assert all(math.isnan(value) for value in found.values())
    half = base_to_novel(predictions([0], [0]), nothing, predictions([0], [0]))
    assert (half["base"], half["joint"], half["joint_base"]) == (100.0, 100.0, 100.0)
    assert all(math.isnan(half[name]) for name in ("novel", "h", "joint_novel", "novel_class_mean"))
    refuses(lambda: base_to_novel(nothing, nothing, predictions([0], [0])), "joint")


def test_both_averages_of_h() -> None:
    rows = [{"base": 82.0, "novel": 60.0}, {"base": 50.0, "novel": 90.0}, {"base": 70.0, "novel": math.nan}]
    each = [2 * r["base"] * r["novel"] / (r["base"] + r["novel"]) for r in rows[:2]]
    b, n = (82 + 50) / 2, (60 + 90) / 2
    assert average_h(rows) == pytest.approx({"mean_of_h": sum(each) / 2, "h_of_means": 2 * b * n / (b + n)})
    assert average_h(rows)["mean_of_h"] != pytest.approx(average_h(rows)["h_of_means"], rel=1e-3)
    assert all(math.isnan(value) for value in average_h([]).values())


def test_predictions_are_those_of_one_head_over_all_classes() -> None:
    head, base, novel = zero_shot(), source(BASE, 23, 1), source(NOVEL, 17, 2)
    others = head_over(head, ["x", "y"], text)
    own, joint = novel_predictions(head, others, base, novel, batch_size=8)
    whole = TextHead(DIM, BASE + NOVEL, torch.cat([head.weight, others.weight]), head.scale)  # type: ignore[list-item]
    shifted = FeatureSource([novel.views[0].numpy()], novel.labels.numpy() + BASE, torch.device("cpu"))  # type: ignore[union-attr]
    for name in ("labels", "predicted", "confidence", "nll"):
        wanted = [getattr(predict(whole, one), name) for one in (base, shifted)]
        np.testing.assert_allclose(getattr(joint, name), np.concatenate(wanted), rtol=1e-5)
        np.testing.assert_allclose(getattr(own, name), getattr(predict(others, novel), name), rtol=1e-5)
    found = base_to_novel(predict(head, base), own, joint)
    assert found["joint"] < max(found["base"], found["novel"])
    assert found["base"] == pytest.approx(float((predict(head, base).predicted == base.labels.numpy()).mean() * 100))


class Named(TextHead):
    """A head that learns something and can change its names, as prompt heads do."""

    def for_names(self, class_names: Sequence[str]) -> Head:
        other = TextHead(DIM, len(class_names), text(class_names), self.scale)
        other.weight = self.weight[:1] + other.weight  # what was learned takes part
        return other


def test_a_head_with_names_of_its_own_is_asked_first_and_others_are_refused() -> None:
    named = Named(DIM, BASE, directions(BASE, 0), 20.0)
    assert torch.equal(head_over(named, ["x", "y"], text).weight, named.for_names(["x", "y"]).weight)  # type: ignore[arg-type]
    plain = head_over(zero_shot(), ["x", "y"], text)
    assert torch.equal(plain.weight, text(["x", "y"]))  # type: ignore[arg-type]
    refuses(lambda: head_over(LinearHead(DIM, BASE), ["x"], text), "names")


def test_the_curve_has_rows_where_it_is_asked_for() -> None:
    head, base, novel = zero_shot(), source(BASE, 23, 1), source(NOVEL, 17, 2)
    others = head_over(head, ["x", "y"], text)
    row = curve_row(head, others, base, novel)
    own, joint = novel_predictions(head, others, base, novel)
    whole = base_to_novel(predict(head, base), own, joint)
    assert row == {name: whole[name] for name in ("base", "novel", "h")}
    after = curve(head, others, base, novel, every=3, epochs=7)
    assert [epoch for epoch in range(1, 8) if after(epoch)] == [3, 6, 7]
    assert after(3) == row
    before = head.weight.clone()
    head.weight.copy_(directions(BASE, 9))
    assert after(3) != row  # the head of the moment
    head.weight.copy_(before)


def test_the_best_epoch_is_that_of_h() -> None:
    history = [
        {"epoch": 1, "loss": 3.0},
        {"epoch": 2, "loss": 2.0, "base": 60.0, "novel": 70.0, "h": harmonic(60.0, 70.0)},
        {"epoch": 4, "loss": 1.0, "base": 80.0, "novel": 50.0, "h": harmonic(80.0, 50.0)},
    ]
    assert best_epoch(history) == {"best_epoch": 2, "best_base": 60.0, "best_novel": 70.0, "best_h": harmonic(60, 70)}
    assert all(math.isnan(value) for value in best_epoch(history[:1]).values())


def test_transfer_scores_each_dataset_among_its_own_classes() -> None:
    sets = {"pets": (("x", "y"), source(2, 11, 3)), "food": (("p", "q", "rr"), source(3, 13, 4))}
    head = zero_shot()
    found = transfer(head, sets, lambda name, names: text((name, *names))[: len(names)])
    for name, (names, rows) in sets.items():
        said = TextHead(DIM, len(names), text((name, *names))[: len(names)], head.scale)
        assert found[f"transfer_{name}"] == pytest.approx(
            accuracy_in_a_loop(rows.labels.tolist(), predict(said, rows).predicted.tolist())
        )
    assert found["transfer"] == pytest.approx((found["transfer_pets"] + found["transfer_food"]) / 2)
    assert math.isnan(transfer(head, {}, lambda name, names: text(names))["transfer"])
