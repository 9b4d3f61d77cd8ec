"""Settings: the keyword-only parameters of a constructor, with the fields of setting groups in line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from imbalance_vlm.components.ranges import ComputeOnly, Count, Natural, NonNegative, Positive, Share
from imbalance_vlm.components.settings import (
    Setting,
    SettingGroup,
    check_arguments,
    checked_settings,
    documented_settings,
    grouped,
    positionals_of,
    settings_of,
)
from imbalance_vlm.errors import InputError
from imbalance_vlm.values import describe, fits, mistake


@dataclass(frozen=True, kw_only=True)
class Crops(SettingGroup):
    """Random crops.

    Args:
        views: number of crops.
        min_scale: smallest share of the image
            that a crop shows.
    """

    views: int = 4
    min_scale: float = 0.08


class Parent:
    """A component.

    Args:
        counts: of the classes.
        rate: learning rate.
    """

    def __init__(self, counts: list[int], *, rate: float = 1.0, crops: Crops = Crops(views=2)) -> None:
        self.rate, self.crops = rate, crops


class Child(Parent):
    """Without a constructor of its own."""


def test_a_constructor_has_its_keywords_and_the_fields_of_its_groups() -> None:
    defaults = {name: setting.default for name, setting in settings_of(Parent).items()}
    assert defaults == {"rate": 1.0, "views": 2, "min_scale": 0.08}
    assert settings_of(Child) == settings_of(Parent)
    assert positionals_of(Parent) == {"counts": False}


def test_flat_settings_become_groups_again() -> None:
    component = Parent([1], **grouped(Parent, {"rate": 0.5, "min_scale": 0.5}))
    assert (component.rate, component.crops) == (0.5, Crops(views=2, min_scale=0.5))
    assert grouped(Parent, {}) == {}


def test_descriptions_come_from_the_component_and_its_groups() -> None:
    assert documented_settings(Parent) == {
        "views": "number of crops.",
        "min_scale": "smallest share of the image that a crop shows.",
        "counts": "of the classes.",
        "rate": "learning rate.",
    }


def test_a_mark_of_an_annotation_is_found() -> None:
    assert Setting("seconds", Annotated[Positive, ComputeOnly]).marked(ComputeOnly)
    assert Setting("seconds", Positive).marked(ComputeOnly) is None
    assert Setting("seconds", float).marked(ComputeOnly) is None


def test_all_wrong_settings_are_reported_at_once() -> None:
    settings = {"rate": Setting("rate", Positive), "steps": Setting("steps", Count, 1)}
    with pytest.raises(InputError) as error:
        checked_settings("loss 'mine'", settings, {"steps": 0, "rat": 1})
    message = str(error.value)
    assert message.startswith("loss 'mine': unknown setting `rat`. Did you mean 'rate'?")
    assert "`steps` must be a whole number >= 1, got 0" in message
    assert "`rate` is missing" in message


def test_all_wrong_arguments_are_reported_at_once() -> None:
    check_arguments(steps=(Count, 3))
    with pytest.raises(InputError, match=r"`steps` must be a whole number >= 1, got 0; `rate` must be a number > 0"):
        check_arguments(steps=(Count, 0), rate=(Positive, -1))


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
def test_a_value_fits_its_annotation_or_the_message_says_what_does(
    annotation: Any, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        assert fits(annotation, value), value
        assert mistake(annotation, value) is None
    for value in bad:
        assert not fits(annotation, value), value
        assert describe(annotation) in str(mistake(annotation, value))
