"""PromptSRC: deep prompts kept consistent with the frozen model, and averaged over the epochs.

[0] Khattak, Wasim, Naseer, Khan, Yang, Khan. Self-regulating Prompts: Foundational Model Adaptation without
    Forgetting. ICCV 2023.
[1] github.com/muzairkhattak/PromptSRC, trainers/promptsrc.py and configs/trainers/PromptSRC: 4 + 4 tokens, depth 9,
    SGD 2.5e-3 with one epoch of warm-up at 1e-5, batch 4, 20 epochs, average around epoch 15 with deviation 1;
    few-shot: 50 epochs, around 30 with 30 or 45 with 5; across datasets: depth 3, around 6 with 10

    L = loss + 25 mean |t - t'| + 10 mean |f - f'| + mean_n sum_c q'_nc (log q'_nc - log q_nc) / C
    t (C, d), f (N, d): unit features with prompts, t', f' those of the frozen model; q, q' the softmax of the logits
    v = sum_e w_e v_e,   w_e ~ exp(-(e - mu)^2 / (2 sigma^2)),   v_e: the trained parameters after epoch e = 1..E

The divergence is from the frozen model to the prompted one, as [1] computes it, for any loss in L. The two means of
absolute differences are over all entries.

t' is the mean over 60 of CLIP's 80 sentences for ImageNet, for every dataset, of features that are not normalised.

Differs from [1] in: the weights are computed without underflow, so that a training shorter than mu works (its last
epoch has nearly all the weight).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.balancing.regularizers.distill import divergence
from imbalance_vlm.balancing.regularizers.text_anchor import TextAnchor
from imbalance_vlm.components.ranges import Count, NonNegative, Positive
from imbalance_vlm.data.prepare import resolve_templates
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import PixelCrops
from imbalance_vlm.tuning.prompt.ivlp import IVLP, IVLPHead
from imbalance_vlm.tuning.prompt.settings import DeepPrompt, TextMemory


def gaussian_weights(epochs: int, mean: float, std: float) -> Tensor:
    """w_e of the epochs 1..E, (E,) float64; they sum to 1.

    >>> [round(weight, 3) for weight in gaussian_weights(4, mean=3, std=1).tolist()]
    [0.058, 0.258, 0.426, 0.258]
    """
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    return (-(((epoch - mean) / std) ** 2) / 2).softmax(0)


class PromptSRCHead(IVLPHead):
    """Deep prompts in both towers, and the frozen model's features of the last training batch.

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
    """Keeps image features and logits consistent with the frozen model, and averages the prompts over the epochs.

    The term on the text features is a `TextAnchor`.

    Args:
        head: provides the frozen features of the batches and the parameters; it is not a submodule.
        frozen_text: (C, d) unit text features t'.
        epoch_weights: w_e of the epochs 1..E.
        image: weight of the term on image features.
        logits: weight of the term on logits.
    """

    average: Tensor
    epochs: Tensor
    frozen_text: Tensor

    def __init__(
        self,
        head: PromptSRCHead,
        frozen_text: Tensor,
        epoch_weights: Sequence[float],
        image: float = 10.0,
        logits: float = 1.0,
    ) -> None:
        super().__init__(1.0)
        self._head = (head,)  # in a tuple, so that torch does not register it as a submodule
        self.epoch_weights = epoch_weights
        self.image, self.logits = image, logits
        self.register_buffer("frozen_text", frozen_text.detach().clone(), persistent=False)
        start = nn.utils.parameters_to_vector(head.parameters()).detach()
        self.register_buffer("average", torch.zeros_like(start))  # (P,), the sum so far; a checkpoint holds it
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))  # number of epochs in the sum

    def gather(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        head = self._head[0]
        if head.frozen is not None:
            head.frozen = gather_rows(head.frozen)

    def forward(self, outputs: StepOutputs) -> Tensor:
        head = self._head[0]
        if head.frozen is None:
            raise InputError(
                "method 'promptsrc' compares a training batch of its own head with the frozen model, and there is "
                "none; train the head that the tuning made"
            )
        if len(head.frozen) != len(outputs.embeddings):
            raise InputError(
                f"method 'promptsrc' needs the frozen model's features of all {len(outputs.embeddings)} images of a "
                f"batch, and has {len(head.frozen)}; call gather() first"
            )
        frozen_logits = head.logit_scale * head.frozen @ self.frozen_text.to(head.frozen).t()  # (N, C)
        distance = (outputs.embeddings - head.frozen).abs().mean()
        kl = divergence(outputs.logits, frozen_logits).sum() / outputs.logits.numel()  # over N and C
        return self.image * distance + self.logits * kl

    @torch.no_grad()
    def add_epoch(self, epoch: int) -> None:
        """Add the trained values after epoch 1..E to the average."""
        self.average += self.epoch_weights[epoch - 1] * nn.utils.parameters_to_vector(self._head[0].parameters())
        self.epochs += 1

    @torch.no_grad()
    def apply_average(self) -> None:
        """Set the head to the average, if it covers all epochs."""
        if int(self.epochs) == len(self.epoch_weights):
            nn.utils.vector_to_parameters(self.average, self._head[0].parameters())


class PromptSRC(IVLP):
    """Deep prompts in both towers, kept consistent with the frozen model.

    Args:
        tokens: number of learned tokens in the image tower.
        text: weight of the distance to the frozen text features.
        sentences: those that the frozen text features are averaged over: 60 of CLIP's for ImageNet ("openai_60"), as
            in the paper, or the dataset's own ("dataset").
        image: weight of the distance to the frozen image features.
        logits: weight of the divergence from the frozen model's predictions.
        mean: epoch, counted from 1, around which the prompts are averaged.
        std: standard deviation of the weights around `mean`, in epochs.
        prompt: the prompts and their start.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    name = "promptsrc"
    head_type = PromptSRCHead

    def __init__(
        self,
        *,
        tokens: Count = 4,
        text: NonNegative = 25.0,
        sentences: Literal["openai_60", "dataset"] = "openai_60",
        image: NonNegative = 10.0,
        logits: NonNegative = 1.0,
        mean: Positive = 15.0,
        std: Positive = 1.0,
        prompt: DeepPrompt = DeepPrompt(n_ctx=4),
        crops: PixelCrops = PixelCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__(tokens=tokens, prompt=prompt, crops=crops, memory=memory)
        self.text_weight = text
        self.sentences = sentences
        self.image_weight = image
        self.logits_weight = logits
        self.mean = mean
        self.std = std
        self._head: PromptSRCHead | None = None
        self._regulation: SelfRegulation | None = None

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        head = super().head(context, plain)
        self._head = head if isinstance(head, PromptSRCHead) else None
        return head

    def regularizers(self, context: TuningContext) -> list[Regularizer]:
        if self._head is None:
            raise InputError("method 'promptsrc' needs its head before its regularizers; call head() first")
        weights = gaussian_weights(context.epochs, self.mean, self.std).tolist()
        if self.sentences == "dataset":
            frozen = context.text_features(context.class_names, context.templates)  # (C, d)
        else:
            sixty = resolve_templates("openai")[:60]
            encoder: Any = context.encoder  # open_clip's, as every prompt method needs
            frozen = encoder.text_features(context.class_names, sixty, normalize_each=False)
        self._regulation = SelfRegulation(self._head, frozen, weights, self.image_weight, self.logits_weight)
        return [TextAnchor(None, frozen, distance="mean_l1", weight=self.text_weight), self._regulation]

    def after_epoch(self, head: Head, epoch: int) -> None:
        """Add the trained values to the average; called after each epoch, counted from 1."""
        if self._regulation is not None:
            self._regulation.add_epoch(epoch)

    def finish(self, head: Head) -> None:
        """Set the head to the average over the epochs."""
        if self._regulation is not None:
            self._regulation.apply_average()

    def close(self) -> None:
        super().close()
        self._head = self._regulation = None
