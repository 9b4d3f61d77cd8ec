"""CoOp: context optimisation.

[0] Zhou, Yang, Loy, Liu. Learning to Prompt for Vision-Language Models. IJCV 2022.
[1] github.com/KaiyangZhou/CoOp, trainers/coop.py; scripts/coop has the settings: 16 tokens, SGD 2e-3 with one epoch of
    warm-up at 1e-5, batch 32, 50 epochs (1 shot), 100 (2 and 4), 200 (8 and 16), 50 on ImageNet

    z_c = exp(logit_scale) * cos(f, g(v, name_c)),   v: (n_ctx, w) for all classes, or v_c per class (csc)

Differs from [1] in: see `imbalance_vlm/tuning/prompt/base.py`; any loss instead of cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.prompted_text import PromptedText
from imbalance_vlm.errors import InputError
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import CachedCrops
from imbalance_vlm.tuning.prompt.base import PromptHead, PromptTuning, SharedText
from imbalance_vlm.tuning.prompt.settings import Prompt, TextMemory

DEFAULT_LENGTH = 4
"""Context tokens if neither words nor a number are given."""


class CoOp(PromptTuning):
    """Learns vectors instead of the words around the class name; both towers are frozen.

    A method that learns more overrides `head_from`, or other methods of `Tuning`.

    Args:
        prompt: the prompt and its start.
        csc: whether each class has its own context, instead of one that all classes share.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    def __init__(
        self,
        *,
        prompt: Prompt = Prompt(),
        csc: bool = False,
        crops: CachedCrops = CachedCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__()
        self.prompt = prompt
        self.csc = csc
        self.crops = crops
        self.memory = memory

    def transforms(self, context: TuningContext) -> list[View]:
        return self.crops.transforms(context)

    def prompt_head(self, context: TuningContext) -> PromptHead:
        prompt = self.prompt
        prompted = SharedText(
            context.encoder,
            context.class_names,
            position=prompt.position,
            suffix=prompt.suffix,
            memory=self.memory,
        )
        return self.head_from(context, prompted, starting_context(prompted, prompt.n_ctx, prompt.words, self.csc))

    def head_from(self, context: TuningContext, prompted: SharedText, start: Tensor) -> PromptHead:
        """The method's head, whose context begins at `start`."""
        return PromptHead(prompted, start, context.encoder.logit_scale)


def starting_context(prompted: PromptedText, n_ctx: int | None, words: str | None, csc: bool = False) -> Tensor:
    """The start of a context: the embeddings of words, or N(0, .02) from torch's global generator.

    Args:
        prompted: provides the width, the classes and the embeddings of words.
        n_ctx: number of context tokens; None for as many as the words have, or 4.
        words: words to start from, or None.
        csc: whether each class has its own context; all start from the same words.

    Returns:
        (n_ctx, w), or (C, n_ctx, w).

    Raises:
        InputError: words whose number of tokens is not `n_ctx`.
    """
    weight = prompted.tower.home.token_embedding.weight
    classes = len(prompted.class_names)
    if words is None:
        shape = (n_ctx or DEFAULT_LENGTH, prompted.width)
        context = 0.02 * torch.randn(classes, *shape) if csc else 0.02 * torch.randn(*shape)
        return context.to(weight)
    context = prompted.words_to_context(words)
    if n_ctx is not None and n_ctx != len(context):
        raise InputError(
            f"`tuning.n_ctx` must be left out or be the number of tokens of `tuning.init` '{words}', which is "
            f"{len(context)}, got {n_ctx}; for {n_ctx} tokens without words, set tuning.init to random"
        )
    return context.expand(classes, -1, -1) if csc else context
