"""Which components go together. Each rule looks at a complete recipe and says, in words, what cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imbalance_vlm import catalogue
from imbalance_vlm.errors import did_you_mean
from imbalance_vlm.recipe.schema import encoder_entry
from imbalance_vlm.results.columns import SCORES

_REMEDIES = {
    "text": "an encoder with a text tower: any open_clip model",
    "tokens": "an encoder that gives all image tokens",
}

Recipe = Mapping[str, Any]
Conflict = tuple[str, str]


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """(key, message) for everything in the recipe that cannot work together."""
    for rule in (_encoder_provides, _something_to_train, _same_space, _cosine_units, _published):
        yield from rule(recipe)


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def _encoder_provides(recipe: Recipe) -> Iterator[Conflict]:
    """Head and tuning ask for towers that the encoder must have."""
    model = recipe["encoder"]["name"]
    provided = catalogue.ENCODERS.get(encoder_entry(model)).provides
    for key, registry in (("tuning", catalogue.TUNINGS), ("head", catalogue.HEADS)):
        section = recipe[key]
        for capability in sorted(registry.get(section["name"]).needed(_settings(section)) - provided):
            detail = " with init 'text'" if section.get("init") == "text" else ""
            asked = f"{registry.kind} '{section['name']}'{detail}"
            yield key, f"{asked} needs {_REMEDIES[capability]}; encoder '{model}' has none"


def _something_to_train(recipe: Recipe) -> Iterator[Conflict]:
    """Zero-shot and the text head belong together: neither trains anything."""
    tuning, head = recipe["tuning"]["name"], recipe["head"]["name"]
    if tuning == "zero_shot" and head != "text":
        yield "head", f"tuning 'zero_shot' trains nothing, so the head must be 'text', got '{head}'"
    if tuning == "linear_probe" and head == "text":
        yield (
            "head",
            (
                "head 'text' has nothing to train; for a trained classifier that starts from the text features "
                "use {name: cosine, init: text}"
            ),
        )


def _same_space(recipe: Recipe) -> Iterator[Conflict]:
    """Text features live in the embedding space, not in the class token's."""
    if recipe["head"]["name"] == "text" and recipe["encoder"].get("features") == "class_token":
        yield "encoder.features", "head 'text' compares with text features: use features 'embedding'"


def _cosine_units(recipe: Recipe) -> Iterator[Conflict]:
    """A loss that works on cosines must know the scale that the head has put on them."""
    loss, head = recipe["balancing"]["loss"], recipe["head"]
    if "head_scale" not in loss or recipe["tuning"]["name"] == "zero_shot":
        return
    if head["name"] != "cosine":
        yield "head", f"loss '{loss['name']}' works on cosines, so the head must be 'cosine', got '{head['name']}'"
    elif head["learn_scale"]:
        yield "head.learn_scale", f"loss '{loss['name']}' must know the scale of the cosines: use learn_scale false"
    elif head["scale"] != loss["head_scale"]:
        yield (
            "balancing.loss.head_scale",
            f"must equal head.scale, {head['scale']:g}, for cosines to be what they are, got {loss['head_scale']:g}",
        )


def _published(recipe: Recipe) -> Iterator[Conflict]:
    """A published row holds scores, as numbers, and its source."""
    for key, value in (recipe["paper"] or {}).items():
        if key == "source":
            continue
        if key not in SCORES:
            yield f"paper.{key}", f"unknown score.{did_you_mean(key, SCORES)} Allowed: source, {', '.join(SCORES)}"
        elif not isinstance(value, (int, float)):
            yield f"paper.{key}", f"must be a number, got {value!r}"
