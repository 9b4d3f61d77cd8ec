"""The arguments that open_clip needs for local weights, so that a model is built as it was trained.

Weights trained with QuickGELU get QuickGELU under either name of their architecture: the tensors alone would not show
that it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imbalance_vlm.encoders.architectures import configuration
from imbalance_vlm.encoders.formats import Weights
from imbalance_vlm.encoders.locations import Location, tag_config
from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import note

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Overrides:
    """Arguments of `open_clip.create_model`.

    Args:
        quick_gelu: whether QuickGELU replaces the architecture's activation.
        preprocess: keys of open_clip's preprocessing configuration.
    """

    quick_gelu: bool
    preprocess: dict[str, Any] = field(default_factory=dict)


def overrides_for(model: str, pretrained: str | None, location: Location, weights: Weights | None) -> Overrides:
    """How a model must differ from its architecture's configuration.

    Args:
        model, pretrained: as in the recipe.
        location: of the model.
        weights: from a local file; None for a tag or random weights.

    Raises:
        InputError: weights whose activation is unknown, or differs from the one that the model's name implies.
    """
    if weights is None:
        return Overrides(bool(tag_config(model, pretrained).get("quick_gelu")))
    if location.is_model_folder:
        return Overrides(weights.format == "openai" or bool(weights.format == "hf_clip" and weights.quick_gelu))
    config = configuration(model)
    name_implies_quick = bool(config.get("quick_gelu"))
    if name_implies_quick and weights.quick_gelu is False:
        raise InputError(
            f"`pretrained` {pretrained!r} was trained with plain GELU ({weights.format} format), '{model}' has "
            f"QuickGELU; set encoder.name to '{model.removesuffix('-quickgelu')}'"
        )
    if weights.format == "hf_clip" and weights.quick_gelu is None and not name_implies_quick:
        raise InputError(
            f"`pretrained` {pretrained!r} must have its config.json beside it, which says whether it was trained with "
            "QuickGELU, got none. Put it there, or set encoder.name to the '-quickgelu' variant of the architecture if "
            "the model comes from OpenAI"
        )
    sets_activation = any("act_kwargs" in config.get(tower, {}) for tower in ("vision_cfg", "text_cfg"))
    return Overrides(bool(weights.quick_gelu) and not sets_activation, _preprocess(model, weights))


def _preprocess(model: str, weights: Weights) -> dict[str, Any]:
    """Normalisation and resizing for a local file: from its configuration, else as in most of the model's tags."""
    config: Mapping[str, Any] = weights.preprocess
    if not config and weights.format not in ("openai", "hf_clip"):
        config = _most_common_of_tags(model.replace("/", "-"), weights)
    return {key: config[key] for key in PREPROCESSING if config.get(key) is not None}


def _most_common_of_tags(name: str, weights: Weights) -> dict[str, Any]:
    import open_clip

    tags_by_values: dict[tuple[Any, ...], list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        values = tuple(tag_config(name, tag)[key] for key in PREPROCESSING)
        tags_by_values.setdefault(values, []).append(tag)
    if not tags_by_values:
        return {}
    chosen = max(tags_by_values, key=lambda values: len(tags_by_values[values]))
    if len(tags_by_values) > 1:
        rest = ", ".join(tag for values, tags in tags_by_values.items() if values != chosen for tag in tags)
        note(
            f"{weights.file} does not say how its images were prepared: mean {chosen[0]}, std {chosen[1]}, "
            f"{chosen[2]}, {chosen[3]} are used, which is wrong for {rest}; put its open_clip_config.json beside it"
        )
    return dict(zip(PREPROCESSING, chosen, strict=True))
