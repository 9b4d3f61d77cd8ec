"""Heads by name, and the directions they start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.settings import checked_settings, settings_of
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.sources import Source, evaluation_rows
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.progress import note


def create_head(name: str, width: int, num_classes: int, directions: Tensor | None = None, **settings: Any) -> Head:
    """A head by its recipe name.

    Args:
        name: one of `list_heads()`.
        width: width of the features it reads.
        num_classes: C.
        directions: (C, width) unit rows to start from (text features or class means); None for a random start.
        settings: the head's own, as in a recipe.
    """
    catalogue.load_plugins()
    build = catalogue.HEADS.get(name).load()
    if name != "text":  # its one argument comes from the encoder, not from a recipe
        settings = checked_settings(f"head '{name}'", settings_of(build), settings)
    defaults = {key: setting.default for key, setting in settings_of(build).items()}
    init = (defaults | settings).get("init", "random")
    if init != "random" and directions is None:
        raise InputError(
            f"head '{name}': init '{init}' needs `directions`, (C, width) unit rows to start from, got none; give "
            "them or set init='random'"
        )
    head: Head = build(width, num_classes, directions, **settings)
    return head


def reads_tokens(name: str) -> bool:
    """Whether the head reads all image tokens or pooled features."""
    return getattr(catalogue.HEADS.get(name).load(), "reads", "pooled") == "tokens"


def text_directions(encoder: Encoder, kind: str, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, w) unit directions of the class names in the space of the image features of `kind`."""
    if all(name.isdigit() for name in class_names):
        note("the class names are numbers, which say little to a text tower: name the folders, or set data.class_names")
    return encoder.text_in(kind, encoder.text_features(class_names, templates))


@torch.no_grad()
def class_mean_directions(source: Source, num_classes: int, batch_size: int = 1024) -> Tensor:
    """(C, w) unit directions of each class's mean unit feature (tokens: the class token); a class without images gets
    the mean of all."""
    total: Tensor | None = None
    for features, labels in source.batches(evaluation_rows(source, batch_size)):
        unit = F.normalize(features[:, 0] if features.ndim == 3 else features, dim=-1)  # (B, w)
        if total is None:
            total = torch.zeros(num_classes, unit.shape[1], device=unit.device)
        total.index_add_(0, labels, unit)
    if total is None:
        raise ValueError("no features to take means of")
    empty = total.norm(dim=1) == 0
    total[empty] = total.sum(0)
    return F.normalize(total, dim=-1)
