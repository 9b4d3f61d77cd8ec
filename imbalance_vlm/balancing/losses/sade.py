"""SADE: three experts for three test distributions.

[0] Zhang, Hooi, Hong, Feng. Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition.
    NeurIPS 2022.
[1] github.com/Vanint/SADE-AgnosticLT, model/loss.py (`DiverseExpertLoss`, tau 2)

    L = CE(z_1) + CE(z_2 + log pi) + CE(z_3 + log pi - tau log inv_pi)

inv_pi reverses the ranks of the prior: the most frequent class gets the smallest share, and so on. The first expert
learns for test images distributed as in training, the second for a uniform distribution, the third for one in
proportion to inv_pi^tau, which exchanges head and tail, and with tau 2 exaggerates them. The three losses are summed,
as in [1], not averaged.

Differs from [1] in: classes of the same size get the mean of the shares of their ranks, so that the numbering of the
classes has no effect ([1] gives tied classes different shares, depending on how they are sorted); no 1e-9 inside the
logarithms. A class without images is left out of all experts, and has no rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, exact, log_prior, smoothed_cross_entropy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.heads.experts import EXPERTS
from imbalance_vlm.long_tail import LongTail


def rank_reversed(counts: Tensor, like: Tensor) -> Tensor:
    """(C,) the counts with reversed ranks, tied classes averaged; the value of a class without images has no meaning.

    In ascending order, the class of rank r gets the count of rank K - 1 - r. Two binary searches give the positions of
    the classes of equal count, and a cumulative sum their mean.
    """
    ascending = counts.sort().values  # (C,) the E empty classes first
    ranks = torch.arange(len(counts), device=counts.device)
    empty = (counts == 0).sum()
    reversed_counts = ascending[(len(counts) - 1 - ranks + empty).clamp_max(len(counts) - 1)]  # (C,) int64
    sums = torch.cat([reversed_counts.new_zeros(1), reversed_counts.cumsum(0)])  # (C + 1,)
    first, end = torch.searchsorted(ascending, counts), torch.searchsorted(ascending, counts, right=True)
    return exact(sums[end] - sums[first], like) / (end - first)


def expert_shifts(counts: Tensor, like: Tensor, tau: float) -> Tensor:
    """(3, C) offsets added to the logits of each expert; -inf for a class without images."""
    numbers = exact(counts, like)
    prior = log_prior(counts, numbers)
    inverse = (rank_reversed(counts, like) / numbers.sum()).log()
    shifts = torch.stack([torch.zeros_like(prior), prior, prior - tau * inverse])
    return torch.where(counts > 0, shifts, -torch.inf).to(like.dtype)


def sade(logits: Tensor, targets: Tensor, shifts: Tensor) -> Tensor:
    """(N, 3) losses of the experts, of logits (N, 3, C) or (N, C), targets (N,) and `shifts` (3, C)."""
    experts = logits[:, None].expand(-1, len(shifts), -1) if logits.ndim == 2 else logits
    losses = [smoothed_cross_entropy(z + shift, targets) for z, shift in zip(experts.unbind(1), shifts, strict=True)]
    return torch.stack(losses, dim=1)


class SADE(Loss):
    """Cross-entropy of three experts, each on logits shifted towards another test distribution; their sum.

    Logits are (N, 3, C), as the head `experts` returns them in training, or (N, C), shared by all three.

    Cost: three times the logits and softmaxes of cross-entropy, and so at least three times its time; five to seven
    times on a CPU, which allocates tensors of this size (50 MB for 512 images of 8142 classes) anew in each step. Twice
    its memory besides the logits.

    Args:
        long_tail: class counts; a class without images is left out of all experts.
        tau: strength of the third expert, >= 0; at 0 it expects a uniform test distribution, at 1 the training one
            reversed.
    """

    experts = EXPERTS

    def __init__(self, long_tail: LongTail, *, tau: NonNegative = 2.0, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.tau = tau

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sade(logits, targets, expert_shifts(self.counts, logits, self.tau)).sum(1)
