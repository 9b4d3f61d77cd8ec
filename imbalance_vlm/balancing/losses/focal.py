"""Focal loss.

[0] Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017. Equation 4, multi-class form.

    L = (1 - p_y)^gamma * (-log p_y),   p = softmax(z)

Differs from [0] in: softmax over classes instead of one sigmoid per class; no alpha (see `weighting`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, smoothed_cross_entropy
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.long_tail import LongTail


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Per-sample focal loss, (N, C), (N,) -> (N,), finite with finite gradients at any finite logits.

    1 - p_y is computed as -expm1(log p_y): exact where p_y is close to 1, where the subtraction would cancel. The clamp
    keeps the gradient of the power finite when gamma < 1 and p_y rounds to 1.
    """
    nll = smoothed_cross_entropy(logits, targets)  # (N,)
    miss = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)  # 1 - p_y
    return miss**gamma * nll


class Focal(Loss):
    """Focal loss: down-weights samples that are already classified well.

    Args:
        long_tail: class counts (only their number matters here).
        gamma: focusing exponent, >= 0; 0 is cross-entropy.
    """

    def __init__(self, long_tail: LongTail, *, gamma: NonNegative = 2.0, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)
        self.gamma = gamma

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal(logits, targets, self.gamma)
