"""Equalization loss (EQL).

[0] Tan, Wang, Li, Li, Ouyang, Yin, Yan. Equalization Loss for Long-Tailed Object Recognition. CVPR 2020.
    (lambda 1.77e-3: about 100 images of LVIS, the most that its common categories have)

    L = sum_c k_c BCE(z_c, [c = y]),   k_c = 0 if c != y and pi_c < lambda, else 1

Samples of other classes do not lower the logits of rare classes. The threshold is a share of the training images: with
a thousand classes most lie below the default.

Differs from [0] in: no background, so E(r) = 1; a class without images is below any threshold. The softmax form of [0]
for image classification, which ignores at random (SEQL), is not implemented.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss, Reduction
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.long_tail import LongTail


def equalization(logits: Tensor, targets: Tensor, rare: Tensor) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,), with `rare` (C,) bool: classes whose negatives are ignored.

    Each term is a softplus: of z for a negative, of -z for the true class. The true class is masked before the sum over
    the negatives; subtracting it afterwards would cancel digits where it is the largest term.
    """
    index = targets[:, None]
    negatives = F.softplus(logits.scatter(1, index, -torch.inf)) @ (~rare).to(logits.dtype)  # (N,)
    return negatives + F.softplus(-logits.gather(1, index).squeeze(1))


class Equalization(Loss):
    """One sigmoid per class, in which rare classes see no negatives.

    The class with the largest logit is predicted, as with a softmax.

    Args:
        long_tail: class counts; a class without images gets no gradient.
        lam: share of the training images below which a class is rare, >= 0; 0 is plain binary cross-entropy.
    """

    def __init__(self, long_tail: LongTail, *, lam: NonNegative = 1.77e-3, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.lam = lam

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        rare = (self.counts < self.lam * self.counts.sum()) | (self.counts == 0)  # (C,)
        return equalization(logits, targets, rare)
