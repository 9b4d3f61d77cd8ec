"""Full fine-tuning, optionally with learning rates that decay towards the input.

[0] Clark, Luong, Le, Manning. ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators. ICLR 2020.
    (layer-wise learning rates)

    lr of block i of L, counted from 0: lr * d^(L - i);  before the blocks: lr * d^(L + 1);  after the blocks: lr
"""

from __future__ import annotations

from torch import nn

from imbalance_vlm.components.ranges import Part
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.towers import after_stages, beyond_features, stages


class Full(TowerMethod):
    """Trains every parameter of the image tower up to its features.

    Args:
        projection: whether the projection into the space of the text features, which features "embedding" pass, is
            trained too.
        lr_decay: d, the factor on the learning rate from each block to the one before it; 1 for the same rate in all.
    """

    name = "full"

    def __init__(self, *, projection: bool = False, lr_decay: Part = 1.0) -> None:
        self.projection = projection
        self.lr_decay = lr_decay

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        if self.lr_decay != 1:
            stages(tuned.root)  # raises here if there are none
        outside = set() if self.projection else beyond_features(tuned.root)
        tuned.select(lambda name: name not in outside, "a tower with parameters")


def lr_scales(tuned: TunedTower, lr_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each trained parameter, by name; see the formula above.

    Raises:
        InputError: a network without blocks or stages.
    """
    if lr_decay == 1:
        return dict.fromkeys(tuned.named_parameters(), 1.0)
    stage_names, after = stages(tuned.root), after_stages(tuned.root)
    after += [name for name in tuned.root._parameters if name == "proj"]

    def depth(name: str) -> int:
        for number, stage in enumerate(stage_names, start=1):
            if name.startswith(f"{stage}."):
                return number
        return len(stage_names) + 1 if name.split(".")[0] in after else 0

    return {name: lr_decay ** (len(stage_names) + 1 - depth(name)) for name in tuned.named_parameters()}


def lr_groups(tuned: TunedTower, lr_decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """Trained parameters grouped by the factor on their learning rate, the smallest factor first."""
    groups: dict[float, list[nn.Parameter]] = {}
    scales = lr_scales(tuned, lr_decay)
    for name, parameter in tuned.named_parameters().items():
        groups.setdefault(scales[name], []).append(parameter)
    return sorted(groups.items(), key=lambda group: group[0])
