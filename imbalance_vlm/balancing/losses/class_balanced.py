"""Class-balanced loss: weights by the effective number of samples.

[0] Cui, Jia, Lin, Song, Belongie. Class-Balanced Loss Based on Effective Number of Samples. CVPR 2019.

    L = w_y * base(z, y),   w_c = (1 - beta) / (1 - beta^n_c), scaled to sum to the number of classes

Differs from [0] in: the focal base is the softmax form of `focal`, where [0] has one sigmoid per class.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, smoothed_cross_entropy
from imbalance_vlm.balancing.losses.focal import focal
from imbalance_vlm.balancing.losses.weighting import ClassWeighting, effective_number
from imbalance_vlm.components.ranges import NonNegative, Share
from imbalance_vlm.long_tail import LongTail


class ClassBalanced(Loss):
    """Cross-entropy or focal loss times the inverse effective number of the class.

    Args:
        long_tail: class counts; a class without images has weight 0, and stays in the softmax as in cross-entropy.
        beta: how slowly the value of further images of a class decreases, in [0, 1); 0 gives all classes the same
            weight.
        base: the loss that is weighted.
        gamma: focusing exponent of the focal base, >= 0.
        defer: share of the training during which all classes have weight 1 (deferred re-weighting; 0.8 is usual).
    """

    def __init__(
        self,
        long_tail: LongTail,
        *,
        beta: Share = 0.9999,
        base: Literal["cross_entropy", "focal"] = "cross_entropy",
        gamma: NonNegative = 2.0,
        defer: Share = 0.0,
        reduction: Reduction = "batch",
    ) -> None:
        rule = partial(effective_number, beta=beta)
        super().__init__(long_tail, reduction=reduction, weighting=ClassWeighting(rule, defer))
        self.base = base
        self.gamma = gamma

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.base == "focal":
            return focal(logits, targets, self.gamma)
        return smoothed_cross_entropy(logits, targets)
