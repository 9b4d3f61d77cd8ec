"""From a merged recipe to a complete one: every problem found in one pass, every default filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Nested
from imbalance_vlm.components.settings import Setting
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.recipe.compatibility import conflicts
from imbalance_vlm.recipe.load import Loaded
from imbalance_vlm.recipe.problems import Problem, RecipeError
from imbalance_vlm.recipe.schema import (
    RECIPE,
    REQUIRED,
    STUDY,
    Component,
    Components,
    Leaf,
    Node,
    Section,
    join,
    settings_at,
    shared_by,
    shared_settings,
)
from imbalance_vlm.values import fits, mistake, path_problem, written

MOVED = {
    "tuning.average": "training.interpolation",
    "evaluation.novel": "evaluation.base_to_novel",
    "evaluation.curve": "evaluation.base_to_novel.curve",
    "evaluation.calibration_bins": "evaluation.calibration.bins",
}
"""Keys of earlier versions, and what they are now."""

RENAMED = {
    ("tuning.crops", "minimalist"): "'growing'",
    ("head.guide", "class_mean"): "'moving'",
    ("head.guide", "prototype"): "'fixed', with init 'prototype'",
    ("training.schedule.name", "held_cosine"): "'cosine_constant_warmup'",
}
"""Values of earlier versions by their key, and what they are now."""

Report = Callable[[str, str], None]


def resolve(loaded: Loaded) -> dict[str, Any]:
    """The recipe with every default filled in.

    Raises:
        RecipeError: all problems at once, each with its file and key.
    """
    catalogue.load_plugins()
    problems: list[Problem] = []

    def report(key: str, message: str) -> None:
        problems.append(Problem(key, message, loaded.origin(key)))

    recipe = check_section(RECIPE, with_roots(loaded).tree, "", report)
    name = recipe["name"]
    if isinstance(name, str) and {"", ".", ".."} & set(name.split("/")):  # it is a path below the runs folder
        report("name", f"must be words joined by single slashes, such as icons_lt/mine, got {written(name)}")
    elif isinstance(name, str) and (problem := path_problem(f"./{name}")):
        report("name", f"must be a path below the runs folder, got {written(name)}, {problem}")
    if not problems:  # unknown components have no needs to compare
        for key, message in conflicts(recipe):
            report(key, message)
    if problems:
        raise RecipeError(problems)
    return recipe


def _report_unknown(keys: Mapping[str, Any], allowed: list[str], path: str, report: Report) -> None:
    options = allowed if path else ["include", *allowed, *STUDY]  # the added keys are read before the others
    for key in keys:
        if key not in allowed:
            here = join(path, str(key))
            hint = f" It is now `{MOVED[here]}`." if here in MOVED else did_you_mean(key, options)
            report(here, f"unknown key.{hint} Allowed: {', '.join(options) or 'none'}")


def _renamed(key: str, value: Any) -> str:
    """What to write for a value that has another name since an earlier version; "" for any other value."""
    replacement = RENAMED.get((key, value)) if isinstance(value, str) else None
    return f"{written(value)} is now {replacement}" if replacement else ""


def check_section(node: Section, value: Any, path: str, report: Report) -> dict[str, Any]:
    """A section with its defaults filled in; problems are reported by (key, message)."""
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        report(path, f"must be a mapping of keys, got {written(value)}")
        value = {}
    settings = shared_settings(node.settings)
    entries = node.entries.names() if node.entries is not None else []
    _report_unknown(value, [*node.children, *settings, *entries], path, report)
    resolved = {key: _child(child, value, key, path, report) for key, child in node.children.items()}
    resolved |= _bind(settings, value, path, report)
    if node.entries is not None:
        resolved |= _entries(node, value, path, report)
    return resolved


def _child(node: Node, value: Mapping[str, Any], key: str, path: str, report: Report) -> Any:
    here = join(path, key)
    if key not in value:
        if not isinstance(node, Section) and node.default is REQUIRED:
            report(here, f"missing; {_expectation(node)}")
            return None
        value = {key: node.default}
    if isinstance(node, Section):
        return check_section(node, value[key], here, report)
    if isinstance(node, Component):
        return _component(node, value[key], here, report)
    if isinstance(node, Components):
        return _components(node, value[key], here, report)
    if wrong := mistake(node.annotation, value[key]):
        report(here, wrong)
    return value[key]


def _expectation(node: Leaf | Component | Components) -> str:
    if isinstance(node, Component):
        return f"name one {node.registry.kind}, such as {node.registry.names()[0]}"
    return "give a value"


def _entries(node: Section, value: Mapping[str, Any], path: str, report: Report) -> dict[str, Any]:
    """The components of a section whose keys are names of a registry."""
    resolved: dict[str, Any] = {}
    for name in node.entries.names() if node.entries is not None else ():
        here = join(path, name)
        item = value.get(name, name in node.default_entries)
        if item in (False, None):
            continue
        settings = node.entries.get(name).settings() if node.entries is not None else {}
        if item is not True and not isinstance(item, Mapping):
            hints = [f" Did you mean `{{{key}: {item}}}`?" for key in settings if _takes(settings[key], item)]
            report(here, f"must be true, false or a mapping of its settings, got {written(item)}.{''.join(hints)}")
            continue
        values = {} if item is True else item
        _report_unknown(values, list(settings), here, report)
        resolved[name] = _bind(settings, values, here, report)
    return resolved


def _takes(setting: Setting, value: Any) -> bool:
    """Whether a value has the form of a setting; nested components are not looked into."""
    return isinstance(value, (list, tuple)) if setting.marked(Nested) else fits(setting.annotation, value)


def _components(node: Components, value: Any, path: str, report: Report) -> list[dict[str, Any]]:
    if isinstance(value, (str, Mapping)):  # a single component needs no list
        value = [value]
    if not isinstance(value, (list, tuple)):
        report(path, f"must be a list of {node.registry.kind}s, got {written(value)}")
        return []
    single = Component(node.registry, shared=node.shared)
    sections = [_component(single, item, f"{path}.{row}", report) or {} for row, item in enumerate(value)]
    names = [section.get("name") for section in sections]
    for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
        report(path, f"must name each {node.registry.kind} once, got '{name}' {names.count(name)} times")
    return sections


def _component(node: Component, value: Any, path: str, report: Report) -> dict[str, Any] | None:
    if value is None and node.default is None:
        return None
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and isinstance(node.default, str):
        value = {"name": node.default, **value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        report(path, f"must name one {node.registry.kind}, or be a mapping with `name`, got {written(value)}")
        return {}
    try:
        entry = node.registry.get(value["name"])
    except InputError as error:
        here = join(path, "name")
        report(here, _renamed(here, value["name"]) or str(error))
        return {}
    chosen = {"name": value["name"]}
    if entry.methods is not None:
        try:
            chosen["method"] = entry.member(value).name
        except InputError as error:
            report(join(path, "method"), str(error))
            return {}
    settings = settings_at(node, value)
    values = {key: item for key, item in value.items() if key not in chosen}
    _report_unknown(values, [*(["method"] if entry.methods is not None else []), *settings], path, report)
    return chosen | _bind(settings, values, path, report)


def _bind(settings: Mapping[str, Setting], values: Mapping[str, Any], path: str, report: Report) -> dict[str, Any]:
    """The settings with their values or defaults; wrong and missing values are reported."""
    bound: dict[str, Any] = {}
    for name, setting in settings.items():
        here = join(path, name)
        if name not in values:
            if setting.required:
                report(here, "missing; give a value")
            bound[name] = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        elif (nested := setting.marked(Nested)) is not None:
            registry = catalogue.REGISTRIES[nested.registry]
            bound[name] = _components(Components(registry, shared=shared_by(registry)), values[name], here, report)
        else:
            if wrong := mistake(setting.annotation, values[name]):
                report(here, _renamed(here, values[name]) or wrong)
            bound[name] = values[name]
    return bound


def with_roots(loaded: Loaded) -> Loaded:
    """The recipe, with its `data.root` given to those datasets of evaluators that have no `root` of their own."""
    data, evaluation = loaded.tree.get("data"), loaded.tree.get("evaluation")
    if not isinstance(data, Mapping) or "root" not in data or not isinstance(evaluation, Mapping):
        return loaded
    changed = dict(evaluation)
    for name in catalogue.EVALUATORS.names():
        section = evaluation.get(name)
        if not isinstance(section, Mapping):
            continue
        for key, setting in catalogue.EVALUATORS.get(name).settings().items():
            nested = setting.marked(Nested)
            if nested is not None and nested.registry == "datasets" and isinstance(section.get(key), (list, tuple)):
                changed[name] = {**section, key: [_with_root(item, data["root"]) for item in section[key]]}
    return replace(loaded, tree={**loaded.tree, "evaluation": changed})


def _with_root(item: Any, root: Any) -> Any:
    section = {"name": item} if isinstance(item, str) else item
    name = section.get("name") if isinstance(section, Mapping) else None
    if name not in catalogue.DATASETS or "root" not in catalogue.DATASETS.get(str(name)).settings():
        return item
    return {"root": root, **dict(section)}
