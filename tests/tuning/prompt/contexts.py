"""Prompt methods and what they build on, for the tiny models of these tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from imbalance_vlm.components import catalogue
from imbalance_vlm.tuning.base import TuningContext


def make_context(values: Mapping[str, Any]) -> TuningContext:
    """A context with these values, `encoder`, `class_names` and `epochs` among them."""
    defaults = {
        "kind": "embedding",
        "novel_names": (),
        "templates": ("a photo of a {}.", "a {}."),
        "device": torch.device("cpu"),
        "seed": 0,
        "flips": False,
    }
    encoder = values["encoder"]
    return TuningContext(text_features=lambda *names: encoder.text_features(*names), **defaults | dict(values))


def tuning_of(name: str, **settings: Any) -> Any:
    return catalogue.TUNINGS.make({"name": "prompt", "method": name} | settings, {})
