"""Seesaw loss.

[0] Wang, Zhang, Zang, Cao, Pang, Gong, Chen, Liu, Loy, Lin. Seesaw Loss for Long-Tailed Instance Segmentation. CVPR
    2021.
[1] github.com/open-mmlab/mmdetection, mmdet/models/losses/seesaw_loss.py

    L = -log (exp z_y / (sum_{j != y} M_yj S_yj exp z_j + exp z_y))
    M_yj = min(1, N_j / N_y)^p,   S_yj = max(1, p_j / p_y)^q, without gradient,   p = softmax(z)

N counts the labels seen so far in training, this batch included, and at least 1. M reduces the penalty that samples of
frequent classes put on rare ones; S restores it where such a sample is mistaken for one of them.

Differs from [0] and [1] in: the ratio p_j / p_y is exp(z_j - z_y), taken in logarithms, so that it needs no floor; no
normalised classifier and no objectness branch. A class without images in the training set is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, exact, smoothed_cross_entropy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.long_tail import LongTail


def seesaw(logits: Tensor, targets: Tensor, seen: Tensor, p: float, q: float) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,), with `seen` (C,), the counts N; a count of 0 leaves a class out."""
    powers = (p * exact(seen, logits).clamp_min(1.0).log()).to(logits.dtype)  # (C,) p log N
    powers = powers.masked_fill(seen == 0, -torch.inf)
    with torch.no_grad():  # the factors have no gradient, so they are computed in place
        factors = (powers - powers[targets][:, None]).clamp_max_(0.0)  # (N, C) log M, 0 for the true class
        factors.add_((logits - logits.gather(1, targets[:, None])).clamp_min_(0.0), alpha=q)  # + log S, likewise
    return smoothed_cross_entropy(factors.add_(logits), targets)


class Seesaw(Loss):
    """Softmax cross-entropy with smaller penalties on rarer classes, from counts gathered during training.

    In evaluation mode nothing is counted.

    Args:
        long_tail: class counts, used only for which classes have images; the counts of the formula are the buffer
            `seen`.
        p: strength of the mitigation by counts, >= 0.
        q: strength of the compensation by mistakes, >= 0; with p and q 0 this is cross-entropy.
    """

    seen: Tensor

    def __init__(
        self,
        long_tail: LongTail,
        *,
        p: NonNegative = 0.8,
        q: NonNegative = 2.0,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.p = p
        self.q = q
        self.register_buffer("seen", torch.zeros_like(self.counts))  # (C,) int64

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self.seen.index_add_(0, targets, torch.ones_like(targets))
        seen = torch.where(self.counts > 0, self.seen.clamp_min(1), 0)
        return seesaw(logits, targets, seen, self.p, self.q)
