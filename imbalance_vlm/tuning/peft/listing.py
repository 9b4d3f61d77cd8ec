"""The parameters that a method trains in CLIP's ViT-B/16, for `imbalance-vlm show`; no weights are loaded."""

from __future__ import annotations

import re

import torch
from torch import nn

from imbalance_vlm.tuning.peft.base import TowerMethod
from imbalance_vlm.tuning.peft.tuning import PeftTuning

MODEL = "ViT-B-16"
CLASSES = 1000


def trained_set(method: TowerMethod | PeftTuning) -> str:
    """The parameters that a method trains in the image tower, one line for those that differ by the block only.

    >>> from imbalance_vlm.tuning.peft.layernorm import LayerNorm
    >>> print(trained_set(LayerNorm()).splitlines()[0])
    trains in the image tower of ViT-B-16, for 1,000 classes: 39,936 values, and the head
    """
    if isinstance(method, PeftTuning):
        method = method.method
    with method.apply(_tower(), CLASSES) as tuned:
        parameters, count = tuned.describe(), tuned.count()
    lines: dict[str, list[str]] = {}  # by name without the number of the block, and shape
    for name, shape in parameters:
        sizes = f"({', '.join(map(str, shape))})"
        lines.setdefault(f"{re.sub(r'(?<=[.])[0-9]+(?=[.])', '*', name, count=1)} {sizes}", []).append(
            f"{name} {sizes}"
        )
    shown = [names[0] if len(names) == 1 else f"{line} x {len(names)}" for line, names in lines.items()]
    title = f"trains in the image tower of {MODEL}, for {CLASSES:,} classes: {count:,} values, and the head"
    return "\n".join([title, *(f"  {line}" for line in shown)])


def _tower() -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(MODEL)
    with torch.device("meta"):
        tower: nn.Module = open_clip.CLIP(**config).visual
    return tower
