"""Counts and groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError, LongTail


def test_imbalance_is_the_largest_over_the_smallest_count() -> None:
    assert LongTail([60, 30, 10]).imbalance == 6


def test_an_empty_class_is_refused_by_name_or_left_out() -> None:
    with pytest.raises(InputError, match=r"got 0 for class 1 \('lynx'\).*allow_empty=true"):
        LongTail([3, 0, 1], ["cat", "lynx", "dog"])
    tail = LongTail([3, 0, 1], allow_empty=True)
    assert tail.imbalance == 3
    assert tail.groups["few"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "counts",
    [[], [[1, 2]], [-1, 2], [1.5, 2], [math.nan, 1], [math.inf, 1], ["a", "b"], 3, [0, 0]],
    ids=repr,
)
def test_anything_but_a_row_of_whole_numbers_is_refused(counts: object) -> None:
    with pytest.raises(InputError, match="counts"):
        LongTail(counts, allow_empty=True)


def test_whole_numbers_in_any_dtype_are_accepted() -> None:
    for counts in ((3, 2), np.array([3.0, 2.0]), np.array([3, 2], dtype=np.int32)):
        assert LongTail(counts).counts.dtype == np.int64


def test_names_and_thresholds_must_fit() -> None:
    with pytest.raises(InputError, match="`class_names` must name 2 classes, got 1"):
        LongTail([1, 2], ["cat"])
    with pytest.raises(InputError, match="few=30, many=20"):
        LongTail([1, 2], many=20, few=30)


@pytest.mark.parametrize(
    "counts",
    [
        torch.tensor([5.0, 4.0]).bfloat16(),
        torch.tensor([5.0, 4.0], requires_grad=True),
        torch.tensor([5, 4], dtype=torch.uint8),
        np.array([5, 4], np.uint64),
        (5, 4.0),
    ],
)
def test_counts_of_any_type_are_accepted(counts: Any) -> None:
    assert LongTail(counts, group_counts=counts).counts.tolist() == [5, 4]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (torch.tensor([5, 4], device="meta"), "a tensor on the device 'meta', which holds none"),
        ([[1], [2, 3]], "one row of whole numbers"),
        ([1, 2j], "one row of whole numbers"),
        ([1e30, 1], "one row of whole numbers"),
        (None, "one row of whole numbers"),
        ([1.5, 2], "one row of whole numbers"),
    ],
)
def test_counts_that_are_no_counts_are_refused_in_words(counts: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        LongTail(counts)


def test_group_counts_are_checked_as_counts_are() -> None:
    with pytest.raises(InputError, match="`group_counts` must be one row of whole numbers"):
        LongTail([5, 4], group_counts=[5.5, 4])
