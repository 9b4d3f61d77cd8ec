"""Transfer scores against a loop over each dataset's images."""

from __future__ import annotations

import math
from typing import Any

import pytest

from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.evaluation.transfer import Transfer
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.heads.text import TextHead
from tests.contracts import refuses
from tests.evaluation.scenes import BASE, WIDTH, Features, text_features, zero_shot
from tests.evaluation.test_base_to_novel import accuracy_in_a_loop

SETS = {
    "pets": Features(2, 3, ("x", "y"), ("a photo of a {}.",)),
    "food": Features(3, 4, ("p", "q", "rr"), ("{} on a plate", "a dish of {}")),
}


def transfer(head: Any, *names: str) -> Transfer:
    sections = [{"name": name} for name in names]
    return Transfer(head, lambda section: SETS[section["name"]], text_features, datasets=sections)


def test_each_dataset_is_scored_among_its_own_classes_in_its_own_sentences() -> None:
    head = zero_shot()
    scores = dict(transfer(head, "pets", "food").compute())
    assert list(scores) == ["transfer_pets", "transfer_food", "transfer"]
    for name, features in SETS.items():
        data, test = features.data, features.of("test")
        expected = text_features(data.class_names, data.templates)
        named = TextHead(expected, head.logit_scale)
        accuracy = accuracy_in_a_loop(test.labels.tolist(), predict(named, test).predicted.tolist())
        assert scores[f"transfer_{name}"] == pytest.approx(accuracy)
    assert scores["transfer"] == pytest.approx((scores["transfer_pets"] + scores["transfer_food"]) / 2)


def test_without_datasets_the_mean_is_nan() -> None:
    ((name, value),) = transfer(zero_shot()).compute()
    assert name == "transfer"
    assert math.isnan(value)


def test_a_dataset_twice_and_a_head_that_reads_no_names_are_refused() -> None:
    refuses(lambda: transfer(zero_shot(), "pets", "pets"), "once")
    refuses(lambda: list(transfer(LinearHead(WIDTH, BASE), "pets").compute()), "names")
