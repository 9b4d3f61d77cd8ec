"""Prototype contrast: images and texts are pulled to the prototype of their class. Reconstruction, not verified
against the authors' code.

[0] Fu, He, Ding, Cao, Wang. Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail
    Recognition. arXiv 2308.12522, 2023. (no code is public)
[1] Li, Cao, Yuan, Fan, Yang, Feris, Indyk, Katabi. Targeted Supervised Contrastive Learning for Long-Tailed
    Recognition. CVPR 2022. (the same idea, for images: a contrast in which uniform targets take part)

    R = mean_i CE(e_i P^T / T, y_i) + mean_c CE(t_c P^T / T, c),   e, t and p of unit norm, P fixed

The second term is added if text is learned. In the first, classes are weighted by their shares of the batch, or equally
(`balanced`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.components.ranges import NonNegative, Positive, Seed
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.prototype import PrototypeAssign, PrototypeKind


def prototype_contrast(features: Tensor, targets: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Per-sample values, (N, d), (N,), unit prototypes (C, d) -> (N,)."""
    logits = F.normalize(features, dim=-1) @ prototypes.to(features.dtype).t() / temperature  # (N, C)
    return F.cross_entropy(logits, targets, reduction="none")


def class_balanced_mean(values: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Mean over the classes of a batch of the mean of each, (N,), (N,) -> (), without a device sync.

    The sums are at least in float32: bfloat16 cannot count beyond 256.
    """
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    sums = exact.new_zeros(num_classes).index_add(0, targets, exact)  # (C,)
    sizes = exact.new_zeros(num_classes).index_add(0, targets, torch.ones_like(exact))
    return ((sums / sizes.clamp_min(1.0)).sum() / sizes.gt(0).sum()).to(values.dtype)


class PrototypeContrastive(Regularizer):
    """Cross-entropy of embeddings, and of learned text features, against fixed prototypes.

    Args:
        prototypes: (C, d) unit rows, one per class, in the space of the embeddings.
        weight: factor of the term in the objective.
        temperature: temperature T of the cosines.
        text: whether learned text features are pulled to the prototypes too.
        balanced: whether every class of a batch counts the same, instead of every image.
        assign: how prototypes are assigned to classes, as in head "prototype".
        kind: kind of prototypes, as in `create_prototypes`.
        prototype_seed: seed of the rotation of the prototypes.

    Raises:
        InputError: embeddings or text features that are not as wide as the prototypes.
    """

    prototypes: Tensor

    def __init__(
        self,
        prototypes: Tensor,
        *,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.1,
        text: bool = True,
        balanced: bool = False,
        assign: PrototypeAssign = "class_mean",
        kind: PrototypeKind = "auto",
        prototype_seed: Seed = 0,
    ) -> None:
        super().__init__(weight)
        if prototypes.ndim != 2:
            raise InputError(f"`prototypes` must be a matrix (C, d), got {tuple(prototypes.shape)}")
        self.register_buffer("prototypes", prototypes.detach().clone())
        self.temperature = temperature
        self.text = text
        self.balanced = balanced

    def forward(self, outputs: StepOutputs) -> Tensor:
        values = self._contrast("embeddings", outputs.embeddings, outputs.targets)  # (N,)
        term = class_balanced_mean(values, outputs.targets, len(self.prototypes)) if self.balanced else values.mean()
        if self.text and outputs.text is not None:
            classes = torch.arange(len(self.prototypes), device=outputs.text.device)
            term = term + self._contrast("text features", outputs.text, classes).mean()
        return term

    def _contrast(self, what: str, features: Tensor, targets: Tensor) -> Tensor:
        if features.shape[1] != self.prototypes.shape[1]:
            raise InputError(
                f"`prototypes` must be as wide as the {what}, {features.shape[1]}, got {self.prototypes.shape[1]}"
            )
        return prototype_contrast(features, targets, self.prototypes, self.temperature)
