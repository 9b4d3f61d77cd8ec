"""Settings: the keyword-only parameters of a constructor, with the fields of setting groups in line."""

from __future__ import annotations

from dataclasses import dataclass

from imbalance_vlm.components.settings import SettingGroup, grouped, positionals_of, settings_of


@dataclass(frozen=True, kw_only=True)
class Crops(SettingGroup):
    views: int = 4
    min_scale: float = 0.08


class Parent:
    def __init__(self, counts: list[int], *, rate: float = 1.0, crops: Crops = Crops(views=2)) -> None:
        self.rate, self.crops = rate, crops


class Child(Parent):
    """Without a constructor of its own."""


def test_a_constructor_has_its_keywords_and_the_fields_of_its_groups() -> None:
    found = settings_of(Parent)
    assert {name: setting.default for name, setting in found.items()} == {"rate": 1.0, "views": 2, "min_scale": 0.08}
    assert settings_of(Child) == found
    assert positionals_of(Parent) == {"counts": False}


def test_flat_settings_become_the_groups_again() -> None:
    made = Parent([1], **grouped(Parent, {"rate": 0.5, "min_scale": 0.5}))
    assert (made.rate, made.crops) == (0.5, Crops(views=2, min_scale=0.5))
    assert grouped(Parent, {}) == {}
