"""Distillation from the frozen model: the class probabilities of the tuned model stay near those at its start.

[0] Liu, Li, Yu. Fully Fine-tuned CLIP Models are Efficient Few-Shot Learners. arXiv 2407.04003, 2024. (CLIP-CITE: a
    similarity distillation term between the tuned CLIP and the pre-trained one)
[1] Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. NIPS 2014 workshop. (temperature, T^2)

    R = mean_i T^2 KL(q_i || p_i),   p_i = softmax(z_i / T),   q_i = softmax(z0_i / T)

z0 are the logits of the frozen model for the same images: the untouched tower under the head as it started, which for
a text-initialised head is the zero-shot classifier at the head's scale. Where the loss shifts the logits by the prior,
this term still reads z without the shift.

Differs from [0] in: only the image tower is tuned here, so the text side of the frozen model is the head's start; the
paper's other terms (the discriminative and the contrastive task) are the recipe's own loss and regularizers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.errors import InputError


def divergence(logits: Tensor, frozen: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(frozen / T) || softmax(logits / T)) per sample, (N, C), (N, C) -> (N,).

    >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2)).item()
    0.0
    """
    teacher = (frozen / temperature).log_softmax(dim=1)  # (N, C)
    student = (logits / temperature).log_softmax(dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=1)


class Distill(Regularizer):
    """Keeps class probabilities near those of the frozen model.

    Args:
        head: the head at its start; a copy is kept frozen and in evaluation mode.
        features: returns the frozen tower's features of the images of the step, which `head` reads; called once per
            step.
        weight: factor of the term in the objective.
        temperature: temperature T; above 1, the classes that the frozen model finds unlikely count for more.

    Raises:
        InputError: `features` returns a part of the batch only, and `gather` was not called.
    """

    def __init__(
        self,
        head: nn.Module,
        features: Callable[[], Tensor],
        *,
        weight: NonNegative = 1.0,
        temperature: Positive = 1.0,
    ) -> None:
        super().__init__(weight)
        self.start = copy.deepcopy(head).requires_grad_(False).eval()
        self.features = features
        self.temperature = temperature
        self.gathered: Tensor | None = None  # (N, C), frozen logits of a batch that several processes share

    def train(self, mode: bool = True) -> Distill:
        super().train(mode)
        self.start.eval()
        return self

    @torch.no_grad()
    def gather(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        self.gathered = gather_rows(self.start(self.features()))

    def forward(self, outputs: StepOutputs) -> Tensor:
        frozen, self.gathered = self.gathered, None
        if frozen is None:
            with torch.no_grad():
                frozen = self.start(self.features())  # (N, C)
        if len(frozen) != len(outputs.logits):
            raise InputError(
                f"`tuning.kl` compares whole batches with the frozen model, and this process has {len(frozen)} of "
                f"{len(outputs.logits)} images; call gather() first, or set tuning.kl to 0"
            )
        return divergence(outputs.logits.float(), frozen.float(), self.temperature).mean()
