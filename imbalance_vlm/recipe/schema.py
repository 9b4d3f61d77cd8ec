"""The shape of a recipe, and its check: every problem found in one pass, every default filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Natural
from imbalance_vlm.components.registry import Entry, Registry
from imbalance_vlm.components.settings import Setting, mistake, settings_of
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.recipe.load import Loaded
from imbalance_vlm.recipe.problems import Problem, RecipeError

REQUIRED = object()
MOVED = {"tuning.average": "training.interpolation"}
"""Keys of earlier versions, and what they are now."""
Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Leaf:
    """A plain value."""

    annotation: Any
    default: Any = REQUIRED


@dataclass(frozen=True)
class Component:
    """Exactly one entry of a registry, with its settings: `{name: focal, gamma: 2}`, or just `focal`.

    `shared` names a function whose settings every entry accepts beside its own. A default of None makes it optional.
    """

    registry: Registry
    default: Any = REQUIRED
    shared: str = ""
    entry_of: Callable[[str], str] = str  # the registry's name for what the recipe calls it


@dataclass(frozen=True)
class Components:
    """Any number of entries of a registry, each once: `[{name: npt, lmc: 1.0}, text_anchor]`; none by default."""

    registry: Registry
    default: Any = ()
    shared: str = ""


@dataclass(frozen=True)
class Section:
    """Named children, and beside them the settings of a function."""

    children: Mapping[str, Leaf | Component | Components | Section]
    settings: str = ""
    default: Any = None


Node = Leaf | Component | Components | Section


def encoder_name(model: str) -> str:
    return catalogue.encoder_entry(model).name


RECIPE = Section(
    {
        "name": Leaf(str),
        "description": Leaf(str, ""),
        "paper": Leaf(dict[str, float | str] | None, None),  # the published row: {source: ..., overall: ..., many: ...}
        "seed": Leaf(Natural, 0),
        "data": Component(catalogue.DATASETS, shared="imbalance_vlm.data.prepare:apply_protocol"),
        "encoder": Component(
            catalogue.ENCODERS, shared="imbalance_vlm.encoders.features:feature_source", entry_of=encoder_name
        ),
        "tuning": Component(catalogue.TUNINGS),
        "head": Component(catalogue.HEADS, default="linear"),
        "balancing": Section(
            {
                "loss": Component(catalogue.LOSSES, default="cross_entropy"),
                "sampler": Component(catalogue.SAMPLERS, default="instance"),
                "regularizers": Components(catalogue.REGULARIZERS),
                "gradient": Component(catalogue.GRADIENTS, default=None),
                "second_stage": Component(catalogue.SECOND_STAGES, default=None),
                "post_hoc": Component(catalogue.POST_HOC, default=None),
            }
        ),
        "training": Section(
            {
                "optimizer": Component(catalogue.OPTIMIZERS, default="sgd"),
                "schedule": Component(catalogue.SCHEDULES, default="cosine"),
            },
            settings="imbalance_vlm.training.loop:train",
        ),
        "evaluation": Section(
            {"transfer": Components(catalogue.DATASETS, shared="imbalance_vlm.data.prepare:apply_protocol")},
            settings="imbalance_vlm.evaluation.evaluate:evaluate",
        ),
    }
)


def entry_at(node: Component, name: str) -> Entry:
    return node.registry.get(node.entry_of(name))


def _settings(target: str) -> dict[str, Setting]:
    return settings_of(Entry("", target, "").load()) if target else {}


def check(loaded: Loaded) -> dict[str, Any]:
    """The recipe with every default filled in.

    Raises:
        RecipeError: all problems at once, each with its file and key.
    """
    from imbalance_vlm.recipe.compatibility import conflicts

    catalogue.load_plugins()
    problems: list[Problem] = []

    def report(key: str, message: str) -> None:
        problems.append(Problem(key, message, loaded.origin(key)))

    resolved = _section(RECIPE, with_roots(loaded.tree), "", report)
    name = resolved["name"]
    if isinstance(name, str) and {"", ".", ".."} & set(name.split("/")):  # it is a path below the runs folder
        report("name", f"must be a word or words joined by single slashes, such as icons_lt/mine, got {name!r}")
    if not problems:  # components that are not known yet cannot be set against one another
        for key, message in conflicts(resolved):
            report(key, message)
    if problems:
        raise RecipeError(problems)
    return resolved


def with_roots(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe whose transfer datasets, where they name no `root`, lie where its own data lie: one root for all."""
    data, evaluation = tree.get("data"), tree.get("evaluation")
    given = evaluation.get("transfer") if isinstance(evaluation, Mapping) else None
    if not isinstance(data, Mapping) or "root" not in data or not isinstance(given, (list, tuple)):
        return tree

    def placed(item: Any) -> Any:
        section = {"name": item} if isinstance(item, str) else item
        name = section.get("name") if isinstance(section, Mapping) else None
        if name not in catalogue.DATASETS or "root" not in catalogue.DATASETS.get(str(name)).settings():
            return item
        return {"root": data["root"], **dict(section)}

    return {**tree, "evaluation": {**(evaluation or {}), "transfer": [placed(item) for item in given]}}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unknown(keys: Mapping[str, Any], known: list[str], path: str, report: Report) -> None:
    for key in keys:
        if key not in known:
            here = _join(path, str(key))
            hint = f" It is `{MOVED[here]}` now." if here in MOVED else did_you_mean(key, known)
            report(here, f"unknown key.{hint} Allowed: {', '.join(known)}")


def _section(node: Section, value: Any, path: str, report: Report) -> dict[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        report(path, f"must be a mapping of keys, got {value!r}")
        return {}
    settings = _settings(node.settings)
    _unknown(value, [*node.children, *settings], path, report)
    resolved = {}
    for key, child in node.children.items():
        resolved[key] = _child(child, value, key, path, report)
    return resolved | _bind(settings, value, path, report)


def _child(node: Node, value: Mapping[str, Any], key: str, path: str, report: Report) -> Any:
    here = _join(path, key)
    if key not in value:
        if not isinstance(node, Section) and node.default is REQUIRED:
            report(here, f"missing; {_expectation(node)}")
            return None
        value = {key: node.default}
    if isinstance(node, Section):
        return _section(node, value[key], here, report)
    if isinstance(node, Component):
        return _component(node, value[key], here, report)
    if isinstance(node, Components):
        return _components(node, value[key], here, report)
    wrong = mistake(node.annotation, value[key])
    if wrong:
        report(here, wrong)
    return value[key]


def _expectation(node: Leaf | Component | Components) -> str:
    if isinstance(node, Component):
        return f"name one {node.registry.kind}, such as {node.registry.names()[0]}"
    return "give a value"


def _components(node: Components, value: Any, path: str, report: Report) -> list[dict[str, Any]]:
    if isinstance(value, (str, Mapping)):  # a single one needs no list
        value = [value]
    if not isinstance(value, (list, tuple)):
        report(path, f"must be a list of {node.registry.kind}s, got {value!r}")
        return []
    one = Component(node.registry, shared=node.shared)
    found = [_component(one, item, f"{path}.{row}", report) or {} for row, item in enumerate(value)]
    names = [item.get("name") for item in found]
    for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
        report(path, f"must name each {node.registry.kind} once, got '{name}' {names.count(name)} times")
    return found


def _component(node: Component, value: Any, path: str, report: Report) -> dict[str, Any] | None:
    if value is None and node.default is None:
        return None
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and isinstance(node.default, str):
        value = {"name": node.default, **value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        report(path, f"must be the name of a {node.registry.kind}, or a mapping with `name`, got {value!r}")
        return {}
    try:
        entry = entry_at(node, value["name"])
    except InputError as error:
        report(_join(path, "name"), str(error))
        return {}
    named = {"name": value["name"]}
    if entry.methods is not None:
        try:
            member = entry.member(value)
        except InputError as error:
            report(_join(path, "method"), str(error))
            return {}
        named["method"] = member.name
    settings = entry.settings(value) | _settings(node.shared)
    given = {key: item for key, item in value.items() if key not in named}
    _unknown(given, list(settings), path, report)
    return named | _bind(settings, given, path, report)


def _bind(settings: Mapping[str, Setting], given: Mapping[str, Any], path: str, report: Report) -> dict[str, Any]:
    """The settings with their values or defaults; wrong and missing ones are reported."""
    bound = {}
    for name, setting in settings.items():
        here = _join(path, name)
        if name not in given:
            if setting.required:
                report(here, "missing; give a value")
            bound[name] = list(setting.default) if isinstance(setting.default, tuple) else setting.default
            continue
        wrong = mistake(setting.annotation, given[name])
        if wrong:
            report(here, wrong)
        bound[name] = given[name]
    return bound
