"""PromptSRC: deep prompts that stay in agreement with the frozen model, and their average over the epochs.

[0] Khattak, Wasim, Naseer, Khan, Yang, Khan. Self-regulating Prompts: Foundational Model Adaptation without
    Forgetting. ICCV 2023.
[1] github.com/muzairkhattak/PromptSRC, trainers/promptsrc.py and configs/trainers/PromptSRC: 4 + 4 tokens, depth 9,
    SGD 2.5e-3 with one epoch of warm-up at 1e-5, batch 4, 20 epochs, average around epoch 15 with deviation 1;
    few-shot: 50 epochs, around 30 with 30 or 45 with 5; across data sets: depth 3, around 6 with 10

    L = loss + 25 mean |t - t'| + 10 mean |f - f'| + mean_n sum_c q'_nc (log q'_nc - log q_nc) / C
    t (C, d), f (N, d): unit features with prompts, t', f' those of the frozen model; q, q' the softmax of the logits
    v = sum_e w_e v_e,   w_e ~ exp(-(e - mu)^2 / (2 sigma^2)),   v_e: all that is trained, behind epoch e = 1..E

The divergence is from the frozen model to the prompted one, as [1] computes it, whatever the loss in L is. The two
means of absolute differences run over all entries.

Differs from [1] in: t' is the renormalised mean of unit features over the data set's sentences, where [1] averages
features of any length over 60 sentences of ImageNet's; the weights are computed without underflow, so that a training
shorter than mu works (its last epoch has nearly all the weight).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, Seen
from imbalance_vlm.balancing.regularizers.text_anchor import TextAnchor
from imbalance_vlm.components.ranges import Count, NonNegative, Positive
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import SharedText
from imbalance_vlm.tuning.prompt.ivlp import IVLP, IVLPHead
from imbalance_vlm.tuning.prompt.vision_tokens import VisionTokens, normal


def gaussian_weights(epochs: int, mean: float, std: float) -> Tensor:
    """w_e of the epochs 1..E, (E,) float64; they sum to 1.

    >>> [round(weight, 3) for weight in gaussian_weights(4, mean=3, std=1).tolist()]
    [0.058, 0.258, 0.426, 0.258]
    """
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    return (-(((epoch - mean) / std) ** 2) / 2).softmax(0)


def divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    """The frozen model's softmax against the prompted one's, (N, C), (N, C) -> (): KL over N and C."""
    ours, theirs = logits.log_softmax(1), frozen.log_softmax(1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / logits.numel()


class PromptSRCHead(IVLPHead):
    """Deep prompts in both towers, which keeps the frozen model's features of a training batch beside its own.

    Attributes:
        frozen: (N, d) unit features of the last training batch without prompts; None before the first.
    """

    frozen: Tensor | None = None

    def embed(self, features: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.frozen = F.normalize(self.images(features, ()), dim=-1)
        return super().embed(features)


class SelfRegulation(Regularizer):
    """Agreement of images and logits with the frozen model; and the average over the epochs, which it remembers.

    The term for the texts is a `TextAnchor`.

    Args:
        head: whose batches and parameters it looks at; it is no part of this module.
        epoch_weights: w_e of the epochs 1..E.
        image, logits: weights of the two terms.
    """

    average: Tensor
    taken: Tensor

    def __init__(
        self, head: PromptSRCHead, epoch_weights: Sequence[float], image: float = 10.0, logits: float = 1.0
    ) -> None:
        super().__init__(1.0)
        self._head = (head,)  # in a tuple, where torch does not take it for a part
        self.epoch_weights = epoch_weights
        self.image, self.logits = image, logits
        own = nn.utils.parameters_to_vector(head.parameters()).detach()
        self.register_buffer("average", torch.zeros_like(own))  # (P,), the sum so far: a checkpoint holds it
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))  # epochs in it

    def gather(self, together: Callable[[Tensor], Tensor]) -> None:
        head = self._head[0]
        if head.frozen is not None:
            head.frozen = together(head.frozen)

    def forward(self, seen: Seen) -> Tensor:
        head, frozen_text = self._head[0], seen.frozen_text
        if head.frozen is None or frozen_text is None:
            raise InputError(
                "method 'promptsrc' compares a training batch of its own head with the frozen model, and there is "
                "none; train the head that the tuning made, with the frozen text features"
            )
        if len(head.frozen) != len(seen.embeddings):
            raise InputError(
                f"method 'promptsrc' needs the frozen model's features of all {len(seen.embeddings)} images of a "
                f"batch, and has {len(head.frozen)}; call gather() first"
            )
        frozen_logits = head.scale * head.frozen @ frozen_text.to(head.frozen).t()  # (N, C)
        distance = (seen.embeddings - head.frozen).abs().mean()
        return self.image * distance + self.logits * divergence(seen.logits, frozen_logits)

    @torch.no_grad()
    def take(self, epoch: int) -> None:
        """Take in what is trained, behind epoch 1..E."""
        own = nn.utils.parameters_to_vector(self._head[0].parameters())
        self.average += self.epoch_weights[epoch - 1] * own
        self.taken += 1

    @torch.no_grad()
    def put(self) -> None:
        """Give the head the average, once it is one of all epochs."""
        if int(self.taken) < len(self.epoch_weights):
            return
        parameters = list(self._head[0].parameters())
        parts = self.average.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


class PromptSRC(IVLP):
    """Deep prompts in both towers under self-regulation.

    Args:
        n_ctx: learned tokens in the text tower.
        tokens: learned tokens in the image tower.
        text: weight of the distance to the frozen text features.
        image: weight of the distance to the frozen image features.
        logits: weight of the divergence from the frozen model's predictions.
        mean: epoch, counted from 1, around which the prompts are averaged.
        std: how many epochs around it count.
        shared: the other settings of `TwoTowerTuning`.
    """

    name = "promptsrc"

    def __init__(
        self,
        *,
        n_ctx: Count = 4,
        tokens: Count = 4,
        text: NonNegative = 25.0,
        image: NonNegative = 10.0,
        logits: NonNegative = 1.0,
        mean: Positive = 15.0,
        std: Positive = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(n_ctx=n_ctx, tokens=tokens, **shared)
        self.text = text
        self.image = image
        self.logits = logits
        self.mean = mean
        self.std = std
        self._made: PromptSRCHead | None = None
        self._regulation: SelfRegulation | None = None

    def two_tower_head(
        self, task: Task, prompted: SharedText, images: VisionTokens, context: Tensor, rest: Tensor
    ) -> PromptSRCHead:
        tokens = normal(min(self.depth, images.depth), self.tokens, images.width, like=context)
        depth = min(self.depth, prompted.depth)
        self._made = PromptSRCHead(prompted, images, context, rest, depth, task.encoder.logit_scale, tokens)
        return self._made

    def regularizers(self, task: Task) -> list[Regularizer]:
        if self._made is None:
            raise InputError("method 'promptsrc' needs its head before its regularizers; call head() first")
        weights = gaussian_weights(task.epochs, self.mean, self.std).tolist()
        self._regulation = SelfRegulation(self._made, weights, self.image, self.logits)
        return [TextAnchor(distance="mean_l1", weight=self.text), self._regulation]

    def after_epoch(self, head: Head, epoch: int) -> None:
        """Called behind each epoch, counted from 1: what is trained goes into the average."""
        if self._regulation is not None:
            self._regulation.take(epoch)

    def finish(self, head: Head) -> None:
        """The head becomes the average over the epochs."""
        if self._regulation is not None:
            self._regulation.put()

    def close(self) -> None:
        super().close()
        self._made = self._regulation = None
