"""Image-text contrast within a batch, aware of the labels. Reconstruction, not verified against the authors' code.

[0] Fu, He, Ding, Cao, Wang. Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail
    Recognition. arXiv 2308.12522, 2023. (no code is public)

    S_ij = cos(e_i, t_j) / T,   Q_ij = [y_i = y_j] / sum_k [y_i = y_k]
    R = 1/2 (CE(S, Q') + CE(S^T, Q'')),   CE(S, Q) = -mean_i sum_j Q_ij log softmax_j(S_i)_j
    Q' = (1 - d) Q + d softmax(S~),   Q'' = (1 - d) Q + d softmax(S~^T),   S~ of the frozen model, d .5

Q spreads the target over all texts of the class, where CLIP's contrast treats only an image's own text as correct. This
matters if each image has its own text; if all images of a class share one, the two losses are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.components.ranges import NonNegative, Positive, Share
from imbalance_vlm.errors import InputError


def image_text_contrast(
    images: Tensor,
    texts: Tensor,
    targets: Tensor,
    temperature: float,
    frozen: tuple[Tensor, Tensor] | None = None,
    distill: float = 0.5,
) -> Tensor:
    """R of a batch: images (N, d), the text of each (N, d), targets (N,) -> ().

    Args:
        images: features of any length.
        texts: row i is the text of image i.
        targets: labels.
        temperature: T.
        frozen: (images, texts) of the frozen model, (N, d') each, the source of the soft targets.
        distill: share of the soft targets in the target; without `frozen` the target is that of the labels.
    """
    scaled = _similarity(images, texts, temperature)  # (N, N)
    same = targets[:, None].eq(targets).to(scaled.dtype)
    labels = same / same.sum(1, keepdim=True)  # (N, N), symmetric: a row's sum is the size of its class
    teacher = None
    if frozen is not None:
        with torch.no_grad():
            teacher = _similarity(*frozen, temperature).to(scaled.dtype)
    total = scaled.new_zeros(())
    for transposed in (False, True):
        target, logits = labels, scaled.t() if transposed else scaled
        if teacher is not None:
            target = (1.0 - distill) * labels + distill * (teacher.t() if transposed else teacher).softmax(1)
        total = total - (target * logits.log_softmax(1)).sum(1).mean() / 2
    return total


def _similarity(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).t() / temperature


class ImageTextContrast(Regularizer):
    """The contrast between the embeddings of a batch and the learned text features of their classes.

    The frozen model's similarities are those of the embeddings, without gradient, to the frozen text features. Where
    the image side is frozen (prompt learning) these are the frozen model's own.

    Args:
        weight: factor of the term in the objective.
        temperature: temperature T; .01 is that of CLIP.
        distill: share d of the frozen model in the target; 0 if there are no frozen text features.

    Raises:
        InputError: a head that learns no text, or text features of another width than the embeddings.
    """

    def __init__(self, *, weight: NonNegative = 1.0, temperature: Positive = 0.01, distill: Share = 0.5) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.distill = distill

    def forward(self, outputs: StepOutputs) -> Tensor:
        if outputs.text is None:
            raise InputError(
                "regularizer 'image_text_contrast' needs text features that are learned, got none; use a tuning that "
                "trains text, or 'prototype_contrastive', which does without"
            )
        if outputs.text.shape[1] != outputs.embeddings.shape[1]:
            raise InputError(
                f"text features must be as wide as the embeddings, {outputs.embeddings.shape[1]}, got "
                f"{outputs.text.shape[1]}; use encoder.features 'embedding'"
            )
        frozen = None
        if outputs.frozen_text is not None:
            frozen = (outputs.embeddings, outputs.frozen_text[outputs.targets])
        texts = outputs.text[outputs.targets]  # (N, d)
        return image_text_contrast(outputs.embeddings, texts, outputs.targets, self.temperature, frozen, self.distill)
