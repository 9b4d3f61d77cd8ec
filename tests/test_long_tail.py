"""Counts and groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

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
