"""Encoders by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import offer
from imbalance_vlm.components.settings import checked_settings, settings_of
from imbalance_vlm.encoders.base import Encoder, EncoderSpec
from imbalance_vlm.encoders.features import feature_source
from imbalance_vlm.errors import InputError


def create_encoder(name: str, **settings: Any) -> Encoder:
    """An encoder by its recipe name.

    Args:
        name: any open_clip model, "mini-clip", "timm:MODEL", or "PREFIX:MODEL" of a plug-in.
        settings: the encoder's own, as in a recipe.

    Raises:
        InputError: an unknown model or setting, a value out of range, or weights that are missing or do not fit.
    """
    catalogue.load_plugins()
    checked_settings(f"encoder '{name}'", catalogue.ENCODERS.get(name).settings(), settings)
    return encoder_spec({"name": name} | settings).build()


def encoder_spec(section: Mapping[str, Any]) -> EncoderSpec:
    """The specification of a recipe's encoder.

    Args:
        section: the recipe's `encoder` section; what it says about the computation of features is ignored here.

    Raises:
        InputError: an entry that makes no specification.
    """
    catalogue.load_plugins()
    entry = catalogue.ENCODERS.get(section["name"])
    of_features = settings_of(feature_source)
    settings = {key: value for key, value in section.items() if key not in of_features}
    spec = entry.make(settings, offer(name=section["name"]))
    if not isinstance(spec, EncoderSpec):
        raise InputError(
            f"encoder '{entry.name}' must be registered with a specification that has `identity()`, which changes with "
            f"the weights, and `build()`; {type(spec).__name__} lacks one of them"
        )
    return spec


def encoder_identity(section: Mapping[str, Any]) -> str:
    """Identifies a recipe's encoder, weights included, without loading it."""
    return hashlib.sha256(f"{sorted(section.items())}{encoder_spec(section).identity()}".encode()).hexdigest()
