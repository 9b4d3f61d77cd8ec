"""Which settings a recipe may give to a component: its keyword-only parameters, and its parents' where it says so."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm import catalogue
from imbalance_vlm.registry import Entry, constructors_of, settings_of


class Parent:
    def __init__(self, counts: list[int], *, rate: float = 1.0, words: str = "a") -> None: ...


class Closed(Parent):
    def __init__(self, counts: list[int], *, depth: int = 2) -> None: ...


class Open(Parent):
    def __init__(self, counts: list[int], *, depth: int = 2, rate: float = 0.5, **shared: Any) -> None: ...


class Silent(Open):
    """Without a constructor of its own."""


def test_a_constructor_has_its_keywords_alone() -> None:
    assert list(settings_of(Parent)) == ["rate", "words"]
    assert list(settings_of(Closed)) == ["depth"]


def test_one_that_hands_on_what_it_shares_has_its_parents_too_and_its_own_defaults() -> None:
    found = settings_of(Open)
    assert list(found) == ["depth", "rate", "words"]
    assert (found["rate"].default, found["words"].annotation) == (0.5, str)
    assert settings_of(Silent) == found
    assert constructors_of(Silent) == [Open, Parent]


@pytest.mark.parametrize("entry", list(catalogue.PROMPTS), ids=lambda entry: entry.name)
def test_every_prompt_method_is_made_of_the_settings_it_lists(entry: Entry) -> None:
    settings = {name: setting.default for name, setting in entry.settings().items()}
    entry.load()(**settings)
