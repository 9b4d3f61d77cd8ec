"""Independent vision and language prompting: deep prompts in both towers, with nothing between them.

[0] Rasheed, Khattak, Maaz, Khan, Khan. Fine-tuned CLIP Models are Efficient Video Learners. CVPR 2023. (the design)
    Khattak, Rasheed, Maaz, Khan, Khan. MaPLe: Multi-modal Prompt Learning. CVPR 2023. (what it is compared with)
[1] github.com/muzairkhattak/multimodal-prompt-learning, trainers/independentVL.py and configs/trainers/IVLP: 2 + 2
    tokens, SGD 3.5e-3 with one epoch of warm-up at 1e-5, batch 4, 5 epochs

    text:   [start, P_0, rest of the words, name, ".", end]; at block i < D the places of P_0 hold P_i
    image:  [class, patches, Q_0];                          at block i < D those of Q_0 hold Q_i
    P_0 starts from the words, all else from N(0, .02)

Differs from [1] in: the depth is 9 in both towers, as in MaPLe, with which it is compared (the file of [1] has 12).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import SharedText
from imbalance_vlm.tuning.prompt.vision_tokens import TwoTowerHead, TwoTowerTuning, VisionTokens, normal


class IVLPHead(TwoTowerHead):
    """Deep prompts in both towers, each learned for itself.

    Args:
        prompted, images, context, rest, depth, scale: see `TwoTowerHead`.
        tokens: (D', n', w') where the image tower's tokens start.
    """

    def __init__(
        self,
        prompted: SharedText,
        images: VisionTokens,
        context: Tensor,
        rest: Tensor,
        depth: int,
        scale: float,
        tokens: Tensor,
    ) -> None:
        super().__init__(prompted, images, context, rest, depth, scale)
        self.tokens = nn.Parameter(tokens)

    def vision(self) -> list[Tensor]:
        return list(self.tokens)


class IVLP(TwoTowerTuning):
    """Deep prompts in both towers, each learned for itself.

    Args:
        tokens: learned tokens in the image tower.
        shared: the settings of `TwoTowerTuning`.
    """

    name = "ivlp"

    def __init__(self, *, tokens: Count = 2, **shared: Any) -> None:
        super().__init__(**shared)
        self.tokens = tokens

    def two_tower_head(
        self, task: Task, prompted: SharedText, images: VisionTokens, context: Tensor, rest: Tensor
    ) -> IVLPHead:
        tokens = normal(min(self.depth, images.depth), self.tokens, images.width, like=context)
        depth = min(self.depth, prompted.depth)
        return IVLPHead(prompted, images, context, rest, depth, task.encoder.logit_scale, tokens)
