"""CoCoOp: a context for each image.

[0] Zhou, Yang, Loy, Liu. Conditional Prompt Learning for Vision-Language Models. CVPR 2022.
[1] github.com/KaiyangZhou/CoOp, trainers/cocoop.py; its settings: 4 words, batch 1, 10 epochs, SGD 2e-3

    v(f) = v + h(f),   h: Linear(d, d // 16) - ReLU - Linear(d // 16, w) of the unit image feature f, the same for
                       every token
    z_c = exp(logit_scale) * cos(f, g(v(f), name_c))

Each image is classified by its own text features, so each image costs a pass over all classes, in training and testing.
Where a single set of text features is needed (regularizers, geometry, a second stage's start), it is the normalised
mean over the batch in training, and otherwise g(v(m), name_c) with the mean m of the training features so far.

Differs from [1] in: any batch size (the text tower encodes the prompts of one image after the other, in bounded
memory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import CachedCrops
from imbalance_vlm.tuning.prompt.base import PromptHead, SharedText
from imbalance_vlm.tuning.prompt.coop import CoOp
from imbalance_vlm.tuning.prompt.settings import Prompt, TextMemory

NARROWING = 16
"""Ratio of the widths of the image feature and the hidden layer, as in [1]."""

AT_ONCE = 8
"""Images whose text features (AT_ONCE, C, d) are in memory at once at test time."""


def logits_per_image(embeddings: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Cosines to each image's own text features, times the scale: (B, d), (B, C, d) -> (B, C)."""
    return scale * (texts.to(embeddings.dtype) @ embeddings.unsqueeze(2)).squeeze(2)


class CoCoOpHead(PromptHead):
    """A context that all images share, plus a shift that a small network computes from the image.

    Args:
        prompted: the text features as a function of the context.
        context: start of the shared context, (n_ctx, w).
        logit_scale: the model's exp(logit_scale).
        width: d, the width of the image features.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, prompted: SharedText, context: Tensor, logit_scale: float, width: int) -> None:
        super().__init__(prompted, context, logit_scale)
        hidden = max(1, width // NARROWING)
        net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, context.shape[-1]))
        self.net = net.to(context)
        self.register_buffer("mean", torch.zeros(width).to(context))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # training features in the mean
        self._texts: Tensor | None = None  # (B, C, d) of the last training batch

    def contexts(self, embeddings: Tensor) -> Tensor:
        """(B, n_ctx, w) contexts of unit image features (B, d)."""
        shift: Tensor = self.net(embeddings.to(self.context.dtype))  # (B, w)
        return self.context + shift.unsqueeze(1)

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        # A clone, because the graph of a step outlives the in-place changes of `observe`.
        return self.contexts(self.mean.clone()[None])[0], ()

    def classify(self, embeddings: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            parts = [
                logits_per_image(part, self.prompted.per_image(self.contexts(part)), self.logit_scale)
                for part in embeddings.split(AT_ONCE)
            ]
            return torch.cat(parts)
        texts = self.prompted.per_image(self.contexts(embeddings))  # (B, C, d)
        if self.training:
            self._texts = texts
            self.text = F.normalize(texts.mean(0), dim=-1)
        return logits_per_image(embeddings, texts, self.logit_scale)

    def gather(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        if self._texts is not None:
            self.text = F.normalize(gather_rows(self._texts).mean(0), dim=-1)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_texts": None}

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        self.seen += len(embeddings)
        self.mean += (embeddings.to(self.mean) - self.mean).sum(0) / self.seen


class CoCoOp(CoOp):
    """Learns a context and a network that shifts it for each image.

    Args:
        prompt: the prompt and its start.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    def __init__(
        self,
        *,
        prompt: Prompt = Prompt(),
        crops: CachedCrops = CachedCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__(prompt=prompt, crops=crops, memory=memory)

    def head_from(self, context: TuningContext, prompted: SharedText, start: Tensor) -> PromptHead:
        return CoCoOpHead(prompted, start, context.encoder.logit_scale, context.encoder.width(context.kind))
