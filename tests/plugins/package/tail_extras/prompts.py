"""CoOp whose context is disturbed in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import CachedCrops
from imbalance_vlm.tuning.prompt.base import PromptHead, SharedText
from imbalance_vlm.tuning.prompt.coop import CoOp
from imbalance_vlm.tuning.prompt.settings import Prompt


class NoisyHead(PromptHead):
    """A prompt head that adds noise to the context in training.

    Args:
        prompted, context, logit_scale: see `PromptHead`.
        noise: standard deviation of the noise, in those of the context.
    """

    def __init__(self, prompted: SharedText, context: Tensor, logit_scale: float, noise: float) -> None:
        super().__init__(prompted, context, logit_scale)
        self.noise = noise * float(context.std())

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        if not self.training:
            return self.context, ()
        return self.context + self.noise * torch.randn_like(self.context), ()


class NoisyCoOp(CoOp):
    """CoOp that must classify under disturbed contexts.

    Args:
        noise: standard deviation of the noise, in those of the context's start.
        prompt: the prompt and its start.
        csc: a context per class, instead of one that all classes share.
        crops: views of the training images.
    """

    def __init__(
        self,
        *,
        noise: NonNegative = 0.1,
        prompt: Prompt = Prompt(),
        csc: bool = False,
        crops: CachedCrops = CachedCrops(),
    ) -> None:
        super().__init__(prompt=prompt, csc=csc, crops=crops)
        self.noise = noise

    def head_from(self, context: TuningContext, prompted: SharedText, start: Tensor) -> NoisyHead:
        return NoisyHead(prompted, start, context.encoder.logit_scale, self.noise)
