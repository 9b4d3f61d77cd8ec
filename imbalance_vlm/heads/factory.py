"""Heads by name, and the directions they start from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import offer
from imbalance_vlm.components.settings import checked_settings, positionals_of
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.sources import Source, evaluation_rows
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head, check_rows
from imbalance_vlm.progress import note

_WNID = re.compile(r"n\d{8}")
"""A synset of WordNet, as the folders of ImageNet are called."""


def create_head(
    name: str,
    width: int,
    num_classes: int,
    directions: Tensor | None = None,
    *,
    logit_scale: float = 100.0,
    **settings: Any,
) -> Head:
    """A head by its recipe name.

    Args:
        name: one of `list_heads()`.
        width: w of the features that the head reads.
        num_classes: C.
        directions: (C, w) unit rows: what the head starts from (text features or class means), or the text features or
            prototypes of a head that classifies by them. None for a random start.
        logit_scale: exp(logit_scale) of the model, for a zero-shot head.
        settings: settings of the head, as in a recipe.

    Raises:
        InputError: an unknown name or setting, or directions that are missing or have another shape.
    """
    catalogue.load_plugins()
    entry = catalogue.HEADS.get(name)
    allowed = entry.settings()
    section = {"name": name, **checked_settings(f"head '{name}'", allowed, settings)}
    init = section.get("init", allowed["init"].default if "init" in allowed else "random")
    if directions is not None:
        check_rows("directions", directions, num_classes, width)
    elif init != "random" or {"text", "prototypes"} & set(positionals_of(entry.load())):
        start, remedy = (f" with init '{init}'", ", or set init='random'") if init != "random" else ("", "")
        raise InputError(
            f"head '{name}'{start} needs `directions` of shape ({num_classes}, {width}), got None; "
            f"pass one unit row per class{remedy}"
        )
    rows = offer(directions=directions, prototypes=directions, text=directions)
    head: Head = entry.make(section, {**offer(width=width, num_classes=num_classes, logit_scale=logit_scale), **rows})
    return head


def text_directions(encoder: Encoder, kind: str, class_names: Sequence[str], text_features: Tensor) -> Tensor:
    """(C, w) unit directions of the class names in the space of the image features of `kind`."""
    if all(name.isdigit() or _WNID.fullmatch(name) for name in class_names):
        note(
            f"the class names are numbers or identifiers such as {class_names[0]!r}, which mean little to a text "
            "tower; rename the class folders, or name a file of names with data.class_names"
        )
    return encoder.text_in(kind, text_features)


@torch.no_grad()
def class_mean_directions(source: Source, num_classes: int, batch_size: int = 1024) -> Tensor:
    """(C, w) unit directions of each class's mean unit feature; of tokens, the class token is used.

    A class without images gets the mean of all images.

    Raises:
        InputError: a source without images.
    """
    total: Tensor | None = None
    for features, labels in source.batches(evaluation_rows(source, batch_size)):
        unit = F.normalize(features[:, 0] if features.ndim == 3 else features, dim=-1)  # (B, w)
        if total is None:
            total = torch.zeros(num_classes, unit.shape[1], device=unit.device)
        total.index_add_(0, labels, unit)
    if total is None:
        raise InputError("`source` must hold at least one image to take means of, got none")
    empty = total.norm(dim=1) == 0
    total[empty] = total.sum(0)
    return F.normalize(total, dim=-1)
