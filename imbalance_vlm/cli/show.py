"""The texts that `imbalance-vlm show` prints."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress

import yaml

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.components.settings import documented_settings
from imbalance_vlm.errors import InputError
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs.classifier import plain
from imbalance_vlm.tuning.peft.base import TowerMethod
from imbalance_vlm.tuning.peft.listing import trained_set
from imbalance_vlm.values import describe, written


def show_component(entries: Sequence[tuple[str, Entry]]) -> str:
    """Summary, source, settings and documentation of the components of one name."""
    return "\n".join(line for kind, entry in entries for line in [*_component(kind, entry), ""])


def _component(kind: str, entry: Entry) -> list[str]:
    lines = [f"{entry.name} ({kind}): {entry.summary}"]
    if entry.paper:
        lines.append(f"source: {entry.paper}")
    if entry.status:
        lines.append(f"status: {entry.status}, not verified against the authors' code")
    if entry.methods is not None:
        names = entry.methods.names()
        return [*lines, f"method: {', '.join(names)} (default {names[0]})"]
    family = _family(entry)
    section = {"method": entry.name}
    settings = (family or entry).settings(section)
    descriptions = documented_settings(entry.load())
    if family is not None and family.build:
        descriptions = documented_settings(family.load()) | descriptions
    lines.append("settings:" if settings else "settings: none")
    for setting in settings.values():
        default = "required" if setting.required else f"default {written(setting.default)}"
        text = f"  {setting.name}: {describe(setting.annotation)} ({default})"
        lines.append(f"{text}. {descriptions[setting.name]}" if setting.name in descriptions else text)
    lines += ["", (inspect.getdoc(entry.load()) or "").partition("\n\nArgs:")[0]]
    if "tower.trained" in (family or entry).provided(section):
        lines += _trained(entry)
    return lines


def _trained(entry: Entry) -> list[str]:
    """What a method trains at its defaults; nothing where it has no default for a setting."""
    if any(setting.required for setting in entry.settings().values()):
        return []
    component = entry.load()()
    method = getattr(component, "method", component)
    if not isinstance(method, TowerMethod):
        return []
    with suppress(InputError, RuntimeError):  # it needs another kind of tower, or the values of the weights
        return ["", trained_set(method)]
    return []


def _family(entry: Entry) -> Entry | None:
    """The family that a method belongs to; None for a component of its own."""
    families = (family for registry in catalogue.REGISTRIES.values() for family in registry if family.methods)
    return next((family for family in families if family.methods and entry in list(family.methods)), None)


def show_recipe(name: str, overrides: Sequence[str]) -> str:
    """The recipe as it would run, with every default filled in; of a study, each of its runs."""
    recipes = plan(name, overrides).recipes
    return yaml.safe_dump_all([plain(recipe) for recipe in recipes], sort_keys=False, allow_unicode=True)
