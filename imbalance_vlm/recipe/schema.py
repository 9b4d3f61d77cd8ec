"""The shape of a recipe: a tree of sections, components and plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Natural, Nested, Seed
from imbalance_vlm.components.registry import NAMING, Entry, Registry
from imbalance_vlm.components.settings import Setting, settings_of

REQUIRED = object()


@dataclass(frozen=True)
class Leaf:
    """A plain value.

    Args:
        annotation: what it may be.
        default: the value when the key is left out.
        replaced_with: a key of a mapping. A mapping that gives it replaces an included one, and is not merged with it.
    """

    annotation: Any
    default: Any = REQUIRED
    replaced_with: str = ""


@dataclass(frozen=True)
class Component:
    """Exactly one entry of a registry, with its settings: `{name: focal, gamma: 2}`, or just `focal`.

    Args:
        registry: what can be named.
        default: the name used when the key is left out; None makes the component optional.
        shared: "module:attribute" of a callable whose settings every entry accepts in addition to its own.
    """

    registry: Registry
    default: Any = REQUIRED
    shared: str = ""


@dataclass(frozen=True)
class Components:
    """Any number of entries of a registry, each once: `[{name: npt, lmc: 1.0}, text_anchor]`; none by default."""

    registry: Registry
    default: Any = ()
    shared: str = ""


@dataclass(frozen=True)
class Section:
    """Named children, and further keys that are settings or components.

    Args:
        children: the nodes below, by key.
        settings: "module:attribute" of a callable whose settings are keys of this section.
        entries: a registry whose entries are keys of this section: `geometry: {split: test}`. `true` means an
            entry with its defaults, `false` or null for none.
        default_entries: those that are used by default; `false` leaves one out.
    """

    children: Mapping[str, Node]
    settings: str = ""
    entries: Registry | None = None
    default_entries: tuple[str, ...] = ()
    default: Any = None


Node = Leaf | Component | Components | Section

SAMPLER = Component(catalogue.SAMPLERS, default="instance")

RECIPE = Section(
    {
        "name": Leaf(str),
        "description": Leaf(str, ""),
        # The published row, {source: ..., overall: ..., many: ...}; figures of two sources must not be mixed.
        "paper": Leaf(dict[str, float | str] | None, None, replaced_with="source"),
        "seed": Leaf(Seed, 0),
        "data": Component(catalogue.DATASETS, shared="imbalance_vlm.data.prepare:apply_protocol"),
        "encoder": Component(catalogue.ENCODERS, shared="imbalance_vlm.encoders.features:feature_source"),
        "tuning": Component(catalogue.TUNINGS),
        "head": Component(catalogue.HEADS, default="linear"),
        "balancing": Section(
            {
                "loss": Component(catalogue.LOSSES, default="cross_entropy"),
                "sampler": SAMPLER,
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
            settings="imbalance_vlm.training.settings:TrainingSettings",
        ),
        "evaluation": Section(
            {"groups": Section({"many": Leaf(Natural, 100), "few": Leaf(Natural, 20)})},
            settings="imbalance_vlm.evaluation.settings:EvaluationSettings",
            entries=catalogue.EVALUATORS,
            default_entries=("accuracy", "calibration"),
        ),
    }
)
"""Every key of a recipe."""


STUDY: dict[str, Section] = {
    "grid": Section(
        {
            "variants": Leaf(dict[str, dict[str, Any] | None] | None, None),
            "axes": Leaf(dict[str, list[Any]] | None, None),
            "seeds": Leaf(list[Seed] | None, None),
        }
    ),
    "table": Section(
        {
            "columns": Leaf(list[str] | None, None),
            "sort": Leaf(str | None, None),
            "baseline": Leaf(str | None, None),
            "score": Leaf(str, "overall"),
            "average": Leaf(str | None, None),
        }
    ),
    "plot": Section(
        {
            "x": Leaf(str),
            "y": Leaf(list[str]),
            "by": Leaf(str | None, None),
            "each": Leaf(str | None, None),
            "log_x": Leaf(bool, False),
            "lines": Leaf(bool, True),
            "title": Leaf(str, ""),
            "x_label": Leaf(str, ""),
            "y_label": Leaf(str, "accuracy (%)"),
        }
    ),
}
"""The further keys of a study: a recipe with a `grid`.

grid      variants: named sets of overrides; axes: values of a key, all combinations; seeds
table     columns and sort order; baseline: the row that the others are compared with, in `score`; average: an axis
          whose rows are averaged below them
plot      y against x ("epoch", a column or an axis); a panel for each value of `by`, a line for each value of `each`
"""


def child_of(node: Node | None, key: str) -> Node | None:
    """The node of a key below a node; None where the tree has none, as for a setting of a component."""
    if node is RECIPE and key in STUDY:
        return STUDY[key]
    if node is STUDY["grid"].children["variants"]:  # each is a part of a recipe
        return RECIPE
    return node.children.get(key) if isinstance(node, Section) else None


def replaces(node: Node | None, included: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether a mapping replaces the included mapping at its key, instead of being merged with it.

    A component with another name does. Another `method` of a family does where the family's name is given with it.
    """
    if isinstance(node, Leaf):
        return bool(node.replaced_with) and node.replaced_with in over
    return "name" in over and any(name in over and over[name] != included.get(name, over[name]) for name in NAMING)


def shared_settings(target: str) -> dict[str, Setting]:
    """The settings of "module:attribute"; none for an empty string."""
    return settings_of(Entry("", target, "").load()) if target else {}


def settings_at(node: Component | Components, section: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings of the component that a section names, with those that all its kind share."""
    return node.registry.get(section["name"]).settings(section) | shared_settings(node.shared)


def shared_by(registry: Registry) -> str:
    """What the components of a registry share at the top of a recipe, and so wherever else they are named."""
    nodes = (node for node in RECIPE.children.values() if isinstance(node, Component) and node.registry is registry)
    return next((node.shared for node in nodes), "")


def components_in(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Component | Components, Mapping[str, Any]]]:
    """(key, node, section) of every component of a complete recipe; an evaluator's section has its key as `name`."""
    yield from _components_in(RECIPE, recipe, "")


def _components_in(
    node: Section, value: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Component | Components, Mapping[str, Any]]]:
    for key, child in node.children.items():
        here = join(path, key)
        if isinstance(child, Section):
            yield from _components_in(child, value[key], here)
        elif isinstance(child, Component) and value[key] is not None:
            yield here, child, value[key]
        elif isinstance(child, Components):
            for row, section in enumerate(value[key]):
                yield f"{here}.{row}", child, section
    if node.entries is not None:
        for name in node.entries.names():
            if isinstance(value.get(name), Mapping):
                yield join(path, name), Component(node.entries), {"name": name, **value[name]}


def settings_in(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Setting, Any]]:
    """(key, setting, value) of every setting of a complete recipe: of its sections, its components and those nested in
    these, each of which comes before the setting that it is nested in."""
    yield from _settings_in(RECIPE, recipe, "")
    for key, node, section in components_in(recipe):
        yield from _component_settings(key, node, section)


def _component_settings(
    key: str, node: Component | Components, section: Mapping[str, Any]
) -> Iterator[tuple[str, Setting, Any]]:
    for name, setting in settings_at(node, section).items():
        if name not in section:
            continue
        if (nested := setting.marked(Nested)) is not None:
            registry = catalogue.REGISTRIES[nested.registry]
            child = Component(registry, shared=shared_by(registry))
            for row, item in enumerate(section[name]):
                yield from _component_settings(f"{join(key, name)}.{row}", child, item)
        yield join(key, name), setting, section[name]


def _settings_in(node: Section, value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Setting, Any]]:
    for key, child in node.children.items():
        if isinstance(child, Section):
            yield from _settings_in(child, value[key], join(path, key))
    for name, setting in shared_settings(node.settings).items():
        yield join(path, name), setting, value[name]


def datasets_in(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sections of all datasets that a complete recipe reads: its own, and those of its evaluators."""
    sections: list[Mapping[str, Any]] = [recipe["data"]]
    for _, setting, value in settings_in(recipe):
        nested = setting.marked(Nested)
        if nested is not None and nested.registry == "datasets":
            sections += value
    return sections


def join(path: str, key: str) -> str:
    """`path.key`, or `key` at the top."""
    return f"{path}.{key}" if path else key
