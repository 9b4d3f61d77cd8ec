"""What a method trains, by name: on CLIP's ViT-B/16 without its weights, for `imbalance-vlm show`."""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import nn

from imbalance_vlm.tuning.peft.base import Method

MODEL = "ViT-B-16"
CLASSES = 1000


def trained_set(method: Method) -> str:
    """The parameters that a method trains in the image tower, those of like blocks in one line.

    >>> from imbalance_vlm.tuning.peft.layernorm import LayerNorm
    >>> print(trained_set(LayerNorm()).splitlines()[0])
    trains in the image tower of ViT-B-16, for 1,000 classes: 39,936 numbers, and the head beside it
    """
    with method.apply(_tower(), CLASSES) as tuned:
        parameters, count = tuned.describe(), tuned.count()
    alike: dict[str, list[str]] = {}  # by name without the block's number, and shape
    for name, shape in parameters:
        sizes = f"({', '.join(map(str, shape))})"
        alike.setdefault(f"{re.sub(r'(?<=[.])[0-9]+(?=[.])', '*', name, count=1)} {sizes}", []).append(
            f"{name} {sizes}"
        )
    lines = [names[0] if len(names) == 1 else f"{line} x {len(names)}" for line, names in alike.items()]
    head = f"trains in the image tower of {MODEL}, for {CLASSES:,} classes: {count:,} numbers, and the head beside it"
    return "\n".join([head, *(f"  {line}" for line in lines)])


@cache
def _tower() -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(MODEL)
    with torch.device("meta"):
        tower: nn.Module = open_clip.CLIP(**config).visual
    return tower
