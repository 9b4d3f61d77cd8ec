"""SADE: three experts for three test distributions.

[0] Zhang, Hooi, Hong, Feng. Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition.
    NeurIPS 2022.
[1] github.com/Vanint/SADE-AgnosticLT, model/loss.py (`DiverseExpertLoss`, tau 2)

    L = CE(z_1) + CE(z_2 + log pi) + CE(z_3 + log pi - tau log inv_pi)

inv_pi reverses the ranks of the prior: the most frequent class gets the smallest share, and so on. The first expert
learns for test images distributed as in training, the second for a uniform distribution, the third for one in
proportion to inv_pi^tau: head and tail exchanged, and more so with tau 2. The three losses are added up, as in [1],
not averaged.

Differs from [1] in: classes of the same size share the mean of what their ranks would get, so that it does not matter
how classes are numbered ([1] gives tied classes different shares, as the sort happens to order them); no 1e-9 inside
the logarithms. A class without images takes no part in any expert, and has no rank.
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
    places = torch.arange(len(counts), device=counts.device)
    empty = (counts == 0).sum()
    reversed_counts = ascending[(len(counts) - 1 - places + empty).clamp_max(len(counts) - 1)]  # (C,) int64
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
    values = [smoothed_cross_entropy(z + shift, targets) for z, shift in zip(experts.unbind(1), shifts, strict=True)]
    return torch.stack(values, dim=1)


class SADE(Loss):
    """Cross-entropy of three experts, each on logits shifted towards another test distribution; their sum.

    Logits are (N, 3, C), as the head `experts` gives them in training, or (N, C), which all three then share.

    Cost: that of three experts. The logits are three times as many as cross-entropy's, with three softmaxes, and so the
    time is at least three times as long; five to seven times on a CPU, which maps tensors of this size (50 MB for 512
    images of 8142 classes) anew in each step. Besides the logits, it needs twice the memory.

    Args:
        long_tail: class counts; a class without images takes part in none of the experts.
        tau: strength of the third expert's shift; 0 is a uniform test distribution, 1 the training one reversed.
    """

    experts = EXPERTS

    def __init__(self, long_tail: LongTail, *, tau: NonNegative = 2.0, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.tau = tau

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sade(logits, targets, expert_shifts(self.counts, logits, self.tau)).sum(1)
