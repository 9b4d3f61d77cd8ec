"""The types of values: what fits, and what is said of what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from imbalance_vlm.components.ranges import Count, Natural, NonNegative, Positive, Seed, Share
from imbalance_vlm.values import describe, fits, mistake, written


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [0, -3, 2**63 - 1], [1.0, True, "1", None, 2**63, 10**400, 1 << 20_000]),
        (float, [0, 1.5, 3e38], [True, "1", None, float("nan"), 1e39, -1e308, 10**400]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["a"], [1, None, True]),
        (
            Path,
            ["a/b", Path("a"), "x" * 255],
            [1, None, "", "a\0b", "~no_such_user/x", "x" * 256, "a/" * 3000, "\ud800"],
        ),
        (tuple[str, int], [["a", 1]], [["a"], ["a", 1, 2], [1, "a"], "ab"]),
        (Seed, [0, 2**32 - 1], [-1, 2**32, 2**64]),
        (Count, [1, 10**9], [0, -1, 1.0]),
        (Natural, [0], [-1]),
        (Positive, [0.1, 3], [0, -1, float("inf")]),
        (NonNegative, [0], [-0.1]),
        (Share, [0, 0.99], [1, -0.1]),
        (float | None, [None, 1.0], ["x"]),
        (Literal["a", "b"], ["a"], ["c", 1, None]),
        (Literal[1, 2], [1], [True, 1.0, "1"]),
        (list[int], [[], [1, 2]], [[1, "a"], 1, "ab"]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
        (str | list[str], ["a", ["a"]], [[1], 1]),
        (Any, [None, 1, "x"], []),
    ],
    ids=lambda value: describe(value) if not isinstance(value, list) else "",
)
def test_a_value_fits_its_annotation_or_the_message_says_what_does(
    annotation: Any, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        assert fits(annotation, value), value
        assert mistake(annotation, value) is None
    for value in bad:
        assert not fits(annotation, value), value
        assert describe(annotation) in str(mistake(annotation, value))


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (Positive, 1e308, "too large a number"),
        (int, 10**400, "too large a number"),
        (Path, "a\0b", "NUL"),
        (Path | None, "~no_such_user/x", "there is no user ~no_such_user"),
        (Path, "x" * 300, "too long"),
    ],
)
def test_the_message_says_why_a_value_of_the_right_type_is_refused(annotation: Any, value: Any, reason: str) -> None:
    assert reason in str(mistake(annotation, value))
    assert len(str(mistake(annotation, value))) < 500


def test_values_are_shown_short_whatever_they_are() -> None:
    itself: list[Any] = []
    itself.append(itself)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in (1 << 20_000, "x" * 10**6, itself, deep, 10**400):
        assert len(written(value)) < 250
