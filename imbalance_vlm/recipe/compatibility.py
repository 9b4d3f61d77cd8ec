"""Which components go together: what each needs, another one must provide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Registry
from imbalance_vlm.errors import did_you_mean
from imbalance_vlm.recipe.columns import score_names
from imbalance_vlm.recipe.schema import components_in
from imbalance_vlm.values import written

Recipe = Mapping[str, Any]
Conflict = tuple[str, str]


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """(key, message) for everything in a complete recipe that cannot work together."""
    provided = _provided(recipe)
    for key, node, section in components_in(recipe):
        if node.registry.when and node.registry.when not in provided:
            continue
        subject = f"{node.registry.kind} '{section.get('method', section['name'])}'"
        for need in _unmet(node.registry, section, provided):
            yield key, f"{subject} {_lacks(need, recipe)}"
    yield from _training_needs(recipe, provided)
    yield from _sharded(recipe)
    yield from _new_classes(recipe)
    yield from _published(recipe)


def _provided(recipe: Recipe) -> frozenset[str]:
    """What the components of a recipe provide; those that take no part without training provide nothing then."""
    provided: frozenset[str] = frozenset()
    conditional = []
    for _, node, section in components_in(recipe):
        if node.registry.when:
            conditional.append((node, section))
        else:
            provided |= node.registry.provided(section)
    for node, section in conditional:
        if node.registry.when in provided:
            provided |= node.registry.provided(section)
    return provided


def _unmet(registry: Registry, section: Mapping[str, Any], provided: frozenset[str]) -> list[str]:
    """The needs of a component that no other one meets; where a need of its whole kind is unmet, only those."""
    for needs in (registry.needs, registry.needed(section)):
        if unmet := [need for need in sorted(needs) if not provided & set(need.split("|"))]:
            return unmet
    return []


def _lacks(need: str, recipe: Recipe) -> str:
    """What is needed, in words, and what the recipe has in its place."""
    wanted, chosen = [], ""
    for name in need.split("|"):
        capability = catalogue.CAPABILITIES.get(name)
        wanted.append(capability.description if capability else f"a component that provides '{name}'")
        if capability and not chosen:
            section: Any = recipe
            for part in capability.section.split("."):
                section = section[part]
            got = f"'{section.get('method', section['name'])}'" if section else "none"
            chosen = f"; got {capability.section} {got}"
    return f"needs {', or '.join(wanted)}{chosen}"


def _training_needs(recipe: Recipe, provided: frozenset[str]) -> Iterator[Conflict]:
    """Settings of the training whose needs the components do not meet."""
    training = recipe["training"]
    if training["interpolation"] < 1 and "start" not in provided:
        yield (
            "training.interpolation",
            f"interpolates between the start of the head and the trained head, and {_lacks('start', recipe)}",
        )
    if training["shard"] and "tower.trained" not in provided:
        yield "training.shard", f"shards a tower that is trained, and {_lacks('tower.trained', recipe)}"


def _sharded(recipe: Recipe) -> Iterator[Conflict]:
    """Settings that need all weights or gradients of the tower in one process."""
    training = recipe["training"]
    if training["shard"] and (training["ema"] or training["interpolation"] < 1):
        yield "training.shard", "cannot average sharded weights; set training.ema to 0 and training.interpolation to 1"
    if training["shard"] and recipe["balancing"]["gradient"]:
        yield "training.shard", "cannot transform sharded gradients; remove balancing.gradient"


def _new_classes(recipe: Recipe) -> Iterator[Conflict]:
    """Corrections fitted to the trained classes, which evaluators of new classes cannot use."""
    for key, node, section in components_in(recipe):
        if "names.new" not in node.registry.needed(section):
            continue
        for part in ("second_stage", "post_hoc"):
            if recipe["balancing"][part]:
                yield key, f"tests new classes, and balancing.{part} is fitted to the trained classes only; remove one"


def _published(recipe: Recipe) -> Iterator[Conflict]:
    """A published row holds scores, as numbers, and its source."""
    scores = score_names()
    for key, value in (recipe["paper"] or {}).items():
        if key == "source":
            continue
        if key not in scores:
            yield f"paper.{key}", f"unknown score.{did_you_mean(key, scores)} Allowed: source, {', '.join(scores)}"
        elif not isinstance(value, (int, float)):
            yield f"paper.{key}", f"must be a number, got {written(value)}"
