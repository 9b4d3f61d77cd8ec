"""VPT with CLIP: tokens in the image tower, and the text features of the class names as the classifier.

[0] Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim. Visual Prompt Tuning. ECCV 2022.
[1] github.com/muzairkhattak/multimodal-prompt-learning, trainers/vpt.py: SGD 2.5e-3 with one epoch of warm-up at 1e-5,
    batch 4, 5 epochs

    z_c = exp(logit_scale) * cos(f(x; P), t_c)      P: tokens of `imbalance_vlm/tuning/peft/vpt.py`, t_c: frozen

Differs from [1] in: 10 tokens (8 in [1]); they come after the class token, skip the norm before the blocks and start
from a uniform distribution, as in the code of [0], where [1] appends them before the norm, from N(0, .02); t_c is
averaged over the dataset's sentences, where [1] uses "a photo of a" alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.tuning.base import Tuning, TuningContext
from imbalance_vlm.tuning.crops import PixelCrops
from imbalance_vlm.tuning.peft import vpt
from imbalance_vlm.tuning.peft.base import TunedTower
from imbalance_vlm.tuning.prompt.base import check_prompt_context
from imbalance_vlm.tuning.tower_head import TowerHead


class VPTHead(TowerHead):
    """Tokens in the image tower under the zero-shot classifier.

    Args:
        encoder: the encoder whose image tower holds the tokens.
        tuned: that tower.
        text: (C, d) unit text features of the class names.
    """

    def __init__(self, encoder: Encoder, tuned: TunedTower, text: Tensor) -> None:
        super().__init__(encoder, tuned, TextHead(text, encoder.logit_scale), "embedding")


class VPT(Tuning):
    """Learns tokens in the image tower; the text features of the class names are the classifier.

    Args:
        tokens: number of tokens per block that receives any.
        deep: whether every block receives its own tokens; otherwise tokens are inserted before the first block only.
        crops: views of the training images.
    """

    reads_pixels = True

    def __init__(self, *, tokens: Count = 10, deep: bool = True, crops: PixelCrops = PixelCrops()) -> None:
        self.method = vpt.VPT(tokens=tokens, deep=deep)
        self.crops = crops
        self.tuned: TunedTower | None = None

    def transforms(self, context: TuningContext) -> list[View]:
        return self.crops.transforms(context)

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        check_prompt_context(context)
        self.tuned = self.method.apply(context.encoder.module, len(context.class_names))
        text = context.text_features(context.class_names, context.templates)
        return VPTHead(context.encoder, self.tuned, text)

    def base(self) -> AbstractContextManager[None]:
        return nullcontext() if self.tuned is None else self.tuned.base()

    def close(self) -> None:
        if self.tuned is not None:
            self.tuned.remove()
            self.tuned = None
