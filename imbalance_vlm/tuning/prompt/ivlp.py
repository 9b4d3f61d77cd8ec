"""IVLP: independent vision and language prompting, with uncoupled deep prompts in both towers.

[0] Rasheed, Khattak, Maaz, Khan, Khan. Fine-tuned CLIP Models are Efficient Video Learners. CVPR 2023. (the design)
    Khattak, Rasheed, Maaz, Khan, Khan. MaPLe: Multi-modal Prompt Learning. CVPR 2023. (the comparison with MaPLe)
[1] github.com/muzairkhattak/multimodal-prompt-learning, trainers/independentVL.py and configs/trainers/IVLP: 2 + 2
    tokens, SGD 3.5e-3 with one epoch of warm-up at 1e-5, batch 4, 5 epochs

    text:   [start, P_0, rest of the words, name, ".", end];   at block i < D, P_i replaces P_0
    image:  [class, patches, Q_0];                             at block i < D, Q_i replaces Q_0
    P_0 starts from the words, all else from N(0, .02)

Differs from [1] in: the depth is 9 in both towers, as for MaPLe, with which it is compared (12 in the file of [1]).
"""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import PixelCrops
from imbalance_vlm.tuning.prompt.base import SharedText
from imbalance_vlm.tuning.prompt.settings import DeepPrompt, TextMemory
from imbalance_vlm.tuning.prompt.vision_tokens import TwoTowerHead, TwoTowerTuning, VisionTokens, normal


class IVLPHead(TwoTowerHead):
    """Deep prompts in both towers, each with its own parameters.

    Args:
        prompted, images, context, rest, depth, logit_scale: see `TwoTowerHead`.
        tokens: (D', n', w'), start of the image tower's tokens.
    """

    def __init__(
        self,
        prompted: SharedText,
        images: VisionTokens,
        context: Tensor,
        rest: Tensor,
        depth: int,
        logit_scale: float,
        tokens: Tensor,
    ) -> None:
        super().__init__(prompted, images, context, rest, depth, logit_scale)
        self.tokens = nn.Parameter(tokens)

    def vision(self) -> list[Tensor]:
        return list(self.tokens)


class IVLP(TwoTowerTuning):
    """Deep prompts in both towers, each with its own parameters.

    Args:
        tokens: number of learned tokens in the image tower.
        prompt: the prompts and their start.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    name = "ivlp"
    head_type: type[IVLPHead] = IVLPHead

    def __init__(
        self,
        *,
        tokens: Count = 2,
        prompt: DeepPrompt = DeepPrompt(),
        crops: PixelCrops = PixelCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__(prompt=prompt, crops=crops, memory=memory)
        self.tokens = tokens

    def two_tower_head(
        self, context: TuningContext, prompted: SharedText, images: VisionTokens, start: Tensor, rest: Tensor
    ) -> IVLPHead:
        depth = self.prompt.depth
        tokens = normal(min(depth, images.depth), self.tokens, images.width, like=start)
        depth = min(depth, prompted.depth)
        return self.head_type(prompted, images, start, rest, depth, context.encoder.logit_scale, tokens)
