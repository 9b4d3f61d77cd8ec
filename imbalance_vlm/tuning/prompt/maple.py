"""MaPLe: the image tower's prompts are linear functions of the text tower's.

[0] Khattak, Rasheed, Maaz, Khan, Khan. MaPLe: Multi-modal Prompt Learning. CVPR 2023.
[1] github.com/muzairkhattak/multimodal-prompt-learning, trainers/maple.py and configs/trainers/MaPLe: 2 tokens, SGD
    3.5e-3 with one epoch of warm-up at 1e-5, batch 4, 5 epochs; across datasets depth 3, SGD 2.6e-3, 2 epochs

    text:   [start, P_0, "of a", name, ".", end];   at block i < D, P_i replaces P_0
    image:  [class, patches, A_0 P_0 + b_0];        at block i < D, A_i P_i + b_i replaces the last tokens
    P_0 starts from "a photo", P_i from N(0, .02)

Differs from [1] in: each A_i is initialised separately, where [1] copies A_1 to all later ones; the b_i do not decay,
like all biases in this package; any depth that both towers have, and the model's own widths.
"""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.prompt.base import SharedText
from imbalance_vlm.tuning.prompt.vision_tokens import TwoTowerHead, TwoTowerTuning, VisionTokens


class MaPLeHead(TwoTowerHead):
    """Deep prompts in the text tower, and a linear map from each to the tokens of the image tower's block.

    Args: as for `TwoTowerHead`; `depth` applies to both towers.
    """

    def __init__(
        self, prompted: SharedText, images: VisionTokens, context: Tensor, rest: Tensor, depth: int, logit_scale: float
    ) -> None:
        super().__init__(prompted, images, context, rest, depth, logit_scale)
        maps = [nn.Linear(context.shape[1], images.width) for _ in range(depth)]
        self.couplings = nn.ModuleList(maps).to(context)

    def vision(self) -> list[Tensor]:
        prompts = [self.context, *self.deep]  # D of (n, w)
        return [coupling(prompt) for coupling, prompt in zip(self.couplings, prompts, strict=True)]


class MaPLe(TwoTowerTuning):
    """Deep text prompts, and image prompts that are linear in them. Across datasets the paper uses depth 3.

    Args:
        prompt: the prompts and their start.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    name = "maple"

    def two_tower_head(
        self, context: TuningContext, prompted: SharedText, images: VisionTokens, start: Tensor, rest: Tensor
    ) -> MaPLeHead:
        depth = min(self.prompt.depth, prompted.depth, images.depth)
        return MaPLeHead(prompted, images, start, rest, depth, context.encoder.logit_scale)
