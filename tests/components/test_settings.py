"""Settings: the keyword-only parameters of a constructor, with the fields of setting groups in line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from imbalance_vlm.components.ranges import ComputeOnly, Count, Positive
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
