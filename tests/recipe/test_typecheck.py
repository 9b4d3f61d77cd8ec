"""One value against one annotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from imbalance_vlm.components.ranges import Count, Natural, NonNegative, Positive, Share
from imbalance_vlm.components.settings import describe, fits, mistake


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [0, -3], [1.0, True, "1", None]),
        (float, [0, 1.5], [True, "1", None, float("nan")]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["a"], [1, None, True]),
        (Path, ["a/b", Path("a")], [1, None, ""]),
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
def test_fits(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert fits(annotation, value), value
        assert mistake(annotation, value) is None
    for value in bad:
        assert not fits(annotation, value), value
        assert describe(annotation) in str(mistake(annotation, value))
