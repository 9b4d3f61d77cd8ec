"""CoCoOp: a context for each image.

[0] Zhou, Yang, Loy, Liu. Conditional Prompt Learning for Vision-Language Models. CVPR 2022.
[1] github.com/KaiyangZhou/CoOp, trainers/cocoop.py; its settings: 4 words, batch 1, 10 epochs, SGD 2e-3

    v(f) = v + h(f),   h: Linear(d, d // 16) - ReLU - Linear(d // 16, w) of the unit image feature f, the same for
                       every token
    z_c = exp(logit_scale) * cos(f, g(v(f), name_c))

An image is classified by text features of its own, so each image costs a pass over all classes, in training and in
testing. Where one set of text features is wanted (regularizers, geometry, a second stage's start) it is the batch's
mean, normalised, in training, and otherwise g(v(m), name_c) with the mean m of the training features seen so far.

Differs from [1] in: any batch size (the images go through the text tower one after the other, in bounded memory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, Natural, Part, Positive
from imbalance_vlm.encoders.prompt_layout import Position
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import PromptHead, PromptTuning, SharedText

NARROWING = 16
"""How much narrower the hidden layer is than the image feature, as in [1]."""

AT_ONCE = 8
"""Images whose text features are kept at once in testing, (AT_ONCE, C, d)."""


def own_logits(embeddings: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Cosines to text features of each image's own, times the scale: (B, d), (B, C, d) -> (B, C)."""
    return scale * (texts.to(embeddings.dtype) @ embeddings.unsqueeze(2)).squeeze(2)


class CoCoOpHead(PromptHead):
    """A context that all images share, plus what a small network makes of the image.

    Args:
        prompted: the text features as a function of the context.
        context: where the shared context starts, (n_ctx, w).
        scale: the model's exp(logit_scale).
        width: d of the image features.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, prompted: SharedText, context: Tensor, scale: float, width: int) -> None:
        super().__init__(prompted, context, scale)
        hidden = max(1, width // NARROWING)
        net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, context.shape[-1]))
        self.net = net.to(context)
        self.register_buffer("mean", torch.zeros(width).to(context))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._texts: Tensor | None = None  # (B, C, d) of the last training batch

    def contexts(self, embeddings: Tensor) -> Tensor:
        """(B, n_ctx, w) contexts of unit image features (B, d)."""
        shift: Tensor = self.net(embeddings.to(self.context.dtype))  # (B, w)
        return self.context + shift.unsqueeze(1)

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        return self.contexts(self.mean.clone()[None])[0], ()  # a step's graph outlives what `observe` changes in place

    def classify(self, embeddings: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            parts = [
                own_logits(part, self.prompted.per_image(self.contexts(part)), self.scale)
                for part in embeddings.split(AT_ONCE)
            ]
            return torch.cat(parts)
        texts = self.prompted.per_image(self.contexts(embeddings))  # (B, C, d)
        if self.training:
            self._texts = texts
            self.text = F.normalize(texts.mean(0), dim=-1)
        return own_logits(embeddings, texts, self.scale)

    def gather(self, together: Callable[[Tensor], Tensor]) -> None:
        if self._texts is not None:
            self.text = F.normalize(together(self._texts).mean(0), dim=-1)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_texts": None}

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        self.seen += len(embeddings)
        self.mean += (embeddings.to(self.mean) - self.mean).sum(0) / self.seen


class CoCoOp(PromptTuning):
    """Learns a context and a network that shifts it for each image.

    Args:
        n_ctx: context tokens; None for as many as the words of `init` have, or 4 without words.
        init: words that the context starts from, or None for N(0, .02).
        position: where the name stands: behind the context ("end"), in the middle of it, or in front of it.
        suffix: what stands directly behind the name.
        views: 0 trains on the model's own view of each image; k > 0 on k random crops of it, epoch e on crop e mod k.
        min_scale: smallest share of the image that a crop shows.
        memory_gb: what the backward pass may keep of the text tower, in GiB; the result does not depend on it.
        chunk: classes at once; None lets `memory_gb` decide.
    """

    def __init__(
        self,
        *,
        n_ctx: Count | None = None,
        init: str | None = "a photo of a",
        position: Position = "end",
        suffix: str = ".",
        views: Natural = 4,
        min_scale: Part = 0.08,
        memory_gb: Positive = 2.0,
        chunk: Count | None = None,
    ) -> None:
        super().__init__(
            n_ctx=n_ctx,
            init=init,
            position=position,
            suffix=suffix,
            views=views,
            min_scale=min_scale,
            memory_gb=memory_gb,
            chunk=chunk,
        )

    def prompt_head(self, task: Task, prompted: SharedText, context: Tensor) -> PromptHead:
        return CoCoOpHead(prompted, context, task.encoder.logit_scale, task.encoder.width(task.kind))
