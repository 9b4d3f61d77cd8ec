"""Dot-regression loss on fixed prototypes.

[0] Yang, Chen, Li, Xie, Lin, Tao. Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a Learnable
    Classifier at the End of Deep Neural Network? NeurIPS 2022. Equation 12.
[1] github.com/NeuralCollapseApplications/ImbalancedLearning, train.py (`reg_dot_loss`)

    L = (h.m_y - |m_y| |h|)^2 / (2 |h|),   m fixed unit prototypes, |h| without gradient

Cross-entropy also pushes h away from all other prototypes, most strongly from those of frequent classes; here a sample
is only pulled to its own prototype. The minimum, 0, is reached where h points along m_y.

Differs from [1] in: no further term limits the length of the embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail


def etf_dot_regression(hits: Tensor, lengths: Tensor) -> Tensor:
    """Per-sample loss, (N,), of the dot products h.m_y (N,) and the lengths |h| (N,); 0 for an embedding of zeros."""
    return (hits - lengths) ** 2 / (2.0 * lengths).clamp_min(torch.finfo(hits.dtype).tiny)


class ETFDotRegression(Loss):
    """Squared difference between h.m_y and its largest possible value |h|, over |h|.

    The logits must be h.m_c, with fixed unit prototypes and without a scale. Without embeddings, |h| is taken as 1.

    Args:
        long_tail: class counts (only their number matters here).
    """

    def __init__(self, long_tail: LongTail, *, reduction: Reduction = "batch") -> None:
        super().__init__(long_tail, reduction=reduction)

    def values(self, logits: Tensor, targets: Tensor, embeddings: Tensor | None) -> Tensor:
        hits = logits.gather(1, targets[:, None]).squeeze(1)  # (N,)
        if embeddings is None:
            return etf_dot_regression(hits, torch.ones_like(hits))
        if embeddings.ndim != 2 or len(embeddings) != len(logits):
            raise InputError(
                f"`embeddings` must be ({len(logits)}, d), one row per sample, got {tuple(embeddings.shape)}"
            )
        return etf_dot_regression(hits, embeddings.detach().norm(dim=1).to(hits.dtype))
