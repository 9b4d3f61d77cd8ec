"""Weighted cross-entropy: inverse frequency, and generalised re-weighting (GRW).

[0] Zhang, Li, Yan, He, Sun. Distribution Alignment: A Unified Framework for Long-tail Visual Recognition. CVPR 2021.
    (rho 1.2; rho 1 is plain inverse frequency)

    L = w_y * (-log softmax(z)_y),   w_c = pi_c^-rho, scaled to mean 1

Differs from [0] in: the weights have mean 1 instead of sum 1, so that the learning rate of cross-entropy still fits;
reduction "weights" gives the same value for both.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, smoothed_cross_entropy
from imbalance_vlm.balancing.losses.weighting import ClassWeighting, inverse_frequency
from imbalance_vlm.components.ranges import NonNegative, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail


class Weighted(Loss):
    """Cross-entropy times a power of the inverse class frequency.

    Args:
        long_tail: class counts; a class without images has weight 0, and stays in the softmax as in cross-entropy.
        rho: exponent, >= 0; 1 is inverse frequency, 0 is cross-entropy.
        defer: share of the training during which all classes have weight 1 (deferred re-weighting; 0.8 is usual).

    Raises:
        InputError: `rho` is so large that the weights of frequent classes are 0 in single precision.
    """

    def __init__(
        self, long_tail: LongTail, *, rho: NonNegative = 1.0, defer: Share = 0.0, reduction: Reduction = "batch"
    ) -> None:
        rule = partial(inverse_frequency, rho=rho)
        counts = torch.tensor(long_tail.counts, dtype=torch.float32)
        if not (rule(counts)[counts > 0] > 0).all():
            raise InputError(
                f"`rho` must leave every class a weight above 0 in single precision, got {rho:g} for counts from "
                f"{int(counts[counts > 0].min())} to {int(counts.max())}; choose a smaller `rho`"
            )
        super().__init__(long_tail, reduction=reduction, weighting=ClassWeighting(rule, defer))

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return smoothed_cross_entropy(logits, targets)
