"""What `imbalance-vlm show` prints."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import yaml

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.components.settings import describe
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.folder import plain


def show_component(found: Sequence[tuple[str, Entry]]) -> str:
    """Summary, source, settings and documentation of the components of one name."""
    lines = []
    for kind, entry in found:
        lines.append(f"{entry.name} ({kind}): {entry.summary}")
        if entry.paper:
            lines.append(f"source: {entry.paper}")
        if entry.status:
            lines.append(f"status: {entry.status}, not verified against the authors' code")
        if entry.methods is not None:
            lines += [f"method: {', '.join(entry.methods.names())} (default {entry.methods.names()[0]})", ""]
            continue
        settings = entry.settings()
        lines.append("settings:" if settings else "settings: none")
        for setting in settings.values():
            default = "required" if setting.required else f"default {_word(setting.default)}"
            lines.append(f"  {setting.name}: {describe(setting.annotation)} ({default})")
        lines += ["", inspect.getdoc(entry.load()) or "", ""]
        if entry in _tower_methods():
            from imbalance_vlm.tuning.peft.listing import trained_set

            lines += [trained_set(entry.load()()), ""]
    return "\n".join(lines)


def _tower_methods() -> list[Entry]:
    """The entries that train something in the image tower."""
    return [*(catalogue.PEFT.get(name) for name in catalogue.PEFT.names()), catalogue.TUNINGS.get("full")]


def _word(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _simple(value) else str(value)


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def show_recipe(name: str, overrides: Sequence[str]) -> str:
    """The recipe as it would run: every default filled in; a study shows each of its runs."""
    recipes = plan(name, overrides).recipes
    return yaml.safe_dump_all([plain(recipe) for recipe in recipes], sort_keys=False, allow_unicode=True)
