"""LDAM: label-distribution-aware margins.

[0] Cao, Wei, Gaidon, Arechiga, Ma. Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss. NeurIPS
    2019. LDAM-DRW is Algorithm 1.
[1] github.com/kaidic/LDAM-DRW, losses.py (largest margin 0.5, scale 30, both on cosines)

    L = -log softmax(s * (cos - m_y onehot_y))_y,   m_c = max_m * n_c^(-1/4) / max_j n_j^(-1/4)

The margin is in units of the cosine, so the scale of the logits must be known: `head_scale` is the factor by which the
head multiplies its cosines, and cos = z / head_scale. With s = head_scale this is a margin of s * m_y on the logits.

Differs from [0] in: the effective-number weights of LDAM-DRW are settings (`beta`, `defer`), off by default; weights
divide by the batch size unless reduction is "weights", which is what [1] does.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, exact, scale_of_head, smoothed_cross_entropy
from imbalance_vlm.balancing.losses.weighting import ClassWeighting, effective_number
from imbalance_vlm.components.ranges import NonNegative, Positive, Share
from imbalance_vlm.long_tail import LongTail


def margins(counts: Tensor, like: Tensor, max_m: float) -> Tensor:
    """(C,) margins, `max_m` for the rarest class; 0 for a class without images, which is never a target."""
    roots = torch.where(counts > 0, exact(counts, like) ** -0.25, 0.0)  # (C,)
    return (max_m * roots / roots.max()).to(like.dtype)


def ldam(logits: Tensor, targets: Tensor, margins: Tensor, s: float, head_scale: float) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,), of head_scale * cos, with `margins` (C,)."""
    scaled = (s / head_scale) * logits  # (N, C) s cos
    scaled.scatter_add_(1, targets[:, None], -s * margins[targets][:, None])  # in place, since `scaled` is a new tensor
    return smoothed_cross_entropy(scaled, targets)


class LDAM(Loss):
    """Cross-entropy in which the true class must win by a margin that grows as the class gets rarer.

    Args:
        long_tail: class counts; a class without images stays in the softmax as in cross-entropy.
        max_m: margin of the rarest class, in units of the cosine.
        s: scale of the cosines in this loss.
        logit_scale: factor by which the head multiplies its cosines.
        head_scale: factor between cosines and logits (1 for raw cosines); null uses that of the head.
        beta: parameter of effective-number weights, in [0, 1): 0 gives all classes the same weight, LDAM-DRW uses
            0.9999.
        defer: share of the training during which all classes have weight 1; LDAM-DRW uses 0.8.
    """

    def __init__(
        self,
        long_tail: LongTail,
        logit_scale: float | None = None,
        *,
        max_m: NonNegative = 0.5,
        s: Positive = 30.0,
        head_scale: Positive | None = None,
        beta: Share = 0.0,
        defer: Share = 0.0,
        reduction: Reduction = "batch",
    ) -> None:
        rule = partial(effective_number, beta=beta)
        super().__init__(long_tail, reduction=reduction, weighting=ClassWeighting(rule, defer))
        self.max_m = max_m
        self.s = s
        self.head_scale = scale_of_head(head_scale, logit_scale)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ldam(logits, targets, margins(self.counts, logits, self.max_m), self.s, self.head_scale)
