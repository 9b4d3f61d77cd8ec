"""The recipe reference: what the docstrings and the registries give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jsonschema
import pytest

from imbalance_vlm.components.ranges import Count, Share
from imbalance_vlm.components.registry import Registry
from imbalance_vlm.components.settings import SettingGroup, documented_settings
from imbalance_vlm.recipe.json_schema import SchemaBuilder
from imbalance_vlm.recipe.reference import (
    TEXTS,
    Key,
    keys_of,
    leaf_keys,
    reference,
    section_lines,
    settings_at,
    variants,
)
from imbalance_vlm.recipe.schema import RECIPE, STUDY, Leaf, Section


@dataclass(frozen=True, kw_only=True)
class Crops(SettingGroup):
    """Crops of an image.

    Args:
        views: how many crops.
    """

    views: Count = 4


class Base:
    """A base.

    Args:
        weight: of the base.
        rate: of the base.
    """


class Component(Base):
    """A component.

    Args:
        rate, decay: of the component,
            on two lines.
    """

    def __init__(self, width: int, *, rate: float, decay: Share = 0.5, crops: Crops = Crops(views=2)) -> None: ...


def test_descriptions_come_from_the_class_then_its_groups_and_bases() -> None:
    assert documented_settings(Component) == {
        "rate": "of the component, on two lines.",
        "decay": "of the component, on two lines.",
        "weight": "of the base.",
        "views": "how many crops.",
    }


def test_keys_of_a_constructor_include_its_groups_and_leave_out_what_the_run_gives() -> None:
    defaults = {key.name: key.default for key in keys_of(Component) if key.name != "rate"}
    assert defaults == {"decay": 0.5, "views": 2}
    assert [key.name for key in keys_of(Component)] == ["rate", "decay", "views"]


def _sections(section: Section, path: str = "") -> Iterator[tuple[str, list[Key]]]:
    """Every group of keys below a section, with its place."""
    yield path, [*leaf_keys(section, path), *settings_at(section.settings)]
    for entry in section.entries or ():
        yield from ((f"{path}.{entry.name}", keys) for _, _, keys in variants(entry))
    for name, node in section.children.items():
        here = f"{path}.{name}".strip(".")
        if isinstance(node, Section):
            yield from _sections(node, here)
        elif not isinstance(node, Leaf):
            yield here, settings_at(node.shared)
            for entry in node.registry:
                for method, _, keys in variants(entry):
                    yield f"{here} {entry.name} {method}", keys


ALL = [*_sections(RECIPE), *(place for name, node in STUDY.items() for place in _sections(node, name))]


@pytest.mark.parametrize(("place", "keys"), ALL, ids=lambda value: value if isinstance(value, str) else "keys")
def test_every_key_is_documented(place: str, keys: list[Key]) -> None:
    assert [key.name for key in keys if not key.text] == []


def test_every_section_has_a_text() -> None:
    assert [key for key in (*RECIPE.children, *STUDY) if key not in TEXTS] == []


@pytest.mark.parametrize(("build", "value"), [(Component, "A mapping of settings"), (Base, "`true`")])
def test_components_that_are_keys_of_a_section_are_shown(build: type, value: str) -> None:
    registry = Registry("evaluator")
    registry.add("crops", build, "accuracy over crops")
    lines = section_lines(Section({}, entries=registry), "evaluation", "##")
    assert f"### evaluation.crops\n\nAccuracy over crops. {value}; off by default." in "\n".join(lines)


def test_components_that_are_keys_of_a_section_may_be_switched() -> None:
    registry = Registry("evaluator")
    registry.add("needy", Component, "a required setting")
    registry.add("plain", Base, "no settings")
    needy, plain = (jsonschema.Draft202012Validator(SchemaBuilder().switch(entry)) for entry in registry)
    assert [plain.is_valid(value) for value in (True, False, None, {}, {"views": 3}, "plain")] == [True] * 4 + [
        False
    ] * 2
    assert [needy.is_valid(value) for value in (False, None, {"rate": 1, "views": 3})] == [True] * 3
    assert [needy.is_valid(value) for value in (True, 1, {"views": 0}, {"view": 3})] == [False] * 4


def test_the_page_shows_type_default_and_meaning() -> None:
    page = reference()
    assert "| `gamma` | a number >= 0 | `2.0` |" in page
    assert "### folder" in page
    assert "#### focal" in page
