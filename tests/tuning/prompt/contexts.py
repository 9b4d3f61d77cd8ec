"""What the tests of prompt methods share: class names, methods, and what they build on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.losses.cross_entropy import CrossEntropy
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.components import catalogue
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import TuningContext

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
COUNTS = np.array([9, 4, 1])
TOKENIZER = SimpleTokenizer(context_length=16)


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


def no_plain_head() -> Head:
    raise AssertionError("a prompt method makes its own head")


def objective_of(tuning: Any, head: Any, context: TuningContext, criterion: Any = None) -> Objective:
    """The objective of a run, with the frozen text features where the head learns text."""
    frozen = context.encoder.text_features(context.class_names, context.templates) if head.learns_text else None
    criterion = criterion or CrossEntropy(LongTail(COUNTS))
    return Objective(head, criterion, tuning.regularizers(context), tuning.gradient(context), frozen)
