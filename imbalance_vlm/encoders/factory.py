"""Encoders by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.base import Encoder


def create_encoder(name: str, **settings: Any) -> Encoder:
    """An encoder by its recipe name: any open_clip model, "mini-clip", or "timm:MODEL".

    Raises:
        InputError: an unknown model, or weights that are missing or do not fit.
    """
    catalogue.load_plugins()
    encoder: Encoder = catalogue.encoder_entry(name).load()(name, **settings)
    return encoder


def encoder_identity(section: Mapping[str, Any]) -> str:
    """What a recipe's encoder is, weights included, without loading it."""
    name, pretrained = section["name"], section.get("pretrained")
    entry = catalogue.encoder_entry(name).name
    identity = ""
    if entry == "timm":
        from imbalance_vlm.encoders import timm

        identity = timm.encoder_fingerprint(name, pretrained or False)
    elif entry == "open_clip":
        from imbalance_vlm.encoders import open_clip

        identity = open_clip.encoder_fingerprint(name, pretrained)
    return hashlib.sha256(f"{sorted(section.items())}{identity}".encode()).hexdigest()
