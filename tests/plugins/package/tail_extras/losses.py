"""A loss on logits and a loss on embeddings.

[0] Leng, Tan, Liu, Cubuk, Shi, Cheng, Anguelov. PolyLoss: A Polynomial Expansion Perspective of Classification Loss
    Functions. ICLR 2022. Equation 4.
[1] Wen, Zhang, Li, Qiao. A Discriminative Feature Learning Approach for Deep Face Recognition. ECCV 2016. Equations 2
    and 4.

    Poly1    L = -log p_y + epsilon (1 - p_y),   p = softmax(z + log pi)
    Center   L = -log p_y + lambda / 2 |e - c_y|^2,   c_y <- c_y + rate (mean of the batch's e of class y - c_y)

Differs from [0] in: the log prior pi. Differs from [1] in: the plain mean in the update of a center.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss, Reduction, log_prior
from imbalance_vlm.components.ranges import NonNegative, Part
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail


class Poly1(Loss):
    """Balanced softmax plus epsilon times the probability that the true class lacks.

    Args:
        long_tail: class counts.
        epsilon: weight of the second term; 0 is balanced softmax.
    """

    def __init__(self, long_tail: LongTail, *, epsilon: NonNegative = 1.0, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.epsilon = epsilon

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(logits + log_prior(self.counts, logits), targets, reduction="none")  # (N,)
        return cross_entropy + self.epsilon * (1 - (-cross_entropy).exp())


class Center(Loss):
    """Cross-entropy, and the squared distance of each embedding to the moving mean of its class.

    Args:
        long_tail: class counts.
        head: gives the width of the embeddings.
        strength: lambda, weight of the distance.
        rate: how far a center moves to the mean of a batch.
    """

    centers: Tensor

    def __init__(
        self,
        long_tail: LongTail,
        head: Head,
        *,
        strength: NonNegative = 0.1,
        rate: Part = 0.5,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.strength = strength
        self.rate = rate
        weight, _ = head.classifier()
        self.register_buffer("centers", torch.zeros_like(weight))  # (C, d)

    def values(self, logits: Tensor, targets: Tensor, embeddings: Tensor | None) -> Tensor:
        value = F.cross_entropy(logits, targets, reduction="none")  # (N,)
        if embeddings is None:
            return value
        distance = (embeddings - self.centers[targets]).square().sum(dim=1)  # (N,)
        if self.training:
            self.move(embeddings.detach(), targets)
        return value + self.strength / 2 * distance

    @torch.no_grad()
    def move(self, embeddings: Tensor, targets: Tensor) -> None:
        """Move the centers of the classes in a batch towards its embeddings (N, d)."""
        members = F.one_hot(targets, len(self.centers)).to(embeddings)  # (N, C)
        sizes = members.sum(dim=0)[:, None]  # (C, 1)
        means = members.T @ embeddings / sizes.clamp_min(1)  # (C, d)
        self.centers = torch.where(sizes > 0, self.centers.lerp(means, self.rate), self.centers)
