"""Full fine-tuning, with learning rates that fall towards the input if asked for.

[0] Clark, Luong, Le, Manning. ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators. ICLR 2020.
    (layer-wise learning rates)

    lr of block i of L, counted from 0: lr * d^(L - i);  what comes before the blocks: lr * d^(L + 1);  after them: lr
"""

from __future__ import annotations

from torch import nn

from imbalance_vlm.components.ranges import Part
from imbalance_vlm.tuning.peft.base import Method, Tuned
from imbalance_vlm.tuning.peft.towers import after_stages, beyond_features, stages


class Full(Method):
    """Every parameter of the image tower up to its features.

    Args:
        projection: also trains the projection into the space of the text features, which features "embedding" pass.
        lr_decay: d, the factor from each block to the one before it; 1 trains all alike.
    """

    name = "full"

    def __init__(self, *, projection: bool = False, lr_decay: Part = 1.0) -> None:
        self.projection = projection
        self.lr_decay = lr_decay

    def inject(self, tuned: Tuned, num_classes: int) -> None:
        if self.lr_decay != 1:
            stages(tuned.root)  # refused here where there are none
        outside = set() if self.projection else beyond_features(tuned.root)
        tuned.select(lambda name: name not in outside, "a tower with parameters")


def lr_scales(tuned: Tuned, lr_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each trained parameter, by name; see the formula above.

    Raises:
        InputError: a net without blocks or stages.
    """
    if lr_decay == 1:
        return dict.fromkeys(tuned.named_parameters(), 1.0)
    middle, after = stages(tuned.root), after_stages(tuned.root)
    after += [name for name in tuned.root._parameters if name == "proj"]

    def depth(name: str) -> int:
        for number, stage in enumerate(middle, start=1):
            if name.startswith(f"{stage}."):
                return number
        return len(middle) + 1 if name.split(".")[0] in after else 0

    return {name: lr_decay ** (len(middle) + 1 - depth(name)) for name in tuned.named_parameters()}


def lr_groups(tuned: Tuned, lr_decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """Trained parameters by the factor on their learning rate, from the input on."""
    groups: dict[float, list[nn.Parameter]] = {}
    scales = lr_scales(tuned, lr_decay)
    for name, parameter in tuned.named_parameters().items():
        groups.setdefault(scales[name], []).append(parameter)
    return sorted(groups.items(), key=lambda group: group[0])
