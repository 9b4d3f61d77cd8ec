"""LADE: label distribution disentangling.

[0] Hong, Han, Choi, Seo, Kim, Chang. Disentangling Label Distribution for Long-tailed Visual Recognition. CVPR 2021.
[1] github.com/hyperconnect/LADE, loss/LADELoss.py and PriorCELoss.py; settings (lam, alpha) in its README:
    (.01, .1) for CIFAR-100-LT, (.1, .005) for Places-LT, (.5, .05) for ImageNet-LT and (.1, .05) for iNaturalist 2018

    L = mean_i [-log softmax(z_i + log pi)_{y_i}] + alpha * R
    R = -sum_c pi_c (m_c - s_c - lam s_c^2)
    m_c = mean of z_ic over the batch's samples of class c, 0 for a class absent from the batch
    s_c = log (1/B sum_i exp z_ic) - log pi_c - log K,   K classes with images

R is a regularised Donsker-Varadhan bound that pulls the RAW logits to log p(x | c) / p(x) under a uniform prior; it
must not be computed from the shifted logits of the first term. R is a property of the whole batch: the value of a
sample is its own first term plus alpha * R of its batch, so that the mean is L.

With importance sampling, s_c would divide sample i by the prior of its own label; as in [1], it is divided by that of
class c. Differs from [1] in: no 1e-9 inside the logarithms; a class without images is left out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, exact, log_prior
from imbalance_vlm.balancing.losses.logit_adjustment import logit_adjustment
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.long_tail import LongTail


class _ColumnNormaliser(torch.autograd.Function):
    """log sum_i exp z_ic, (N, C) -> (C,): torch's logsumexp over the rows, in a fraction of its time and memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_shares = logits.log_softmax(0)  # (N, C)
        normaliser = logits[0] - log_shares[0]
        ctx.save_for_backward(log_shares.exp_())
        return normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (shares,) = ctx.saved_tensors
        product: Tensor = shares * grad
        return product


def lade_regulariser(logits: Tensor, targets: Tensor, log_prior: Tensor, lam: float) -> Tensor:
    """R of a batch, (N, C), (N,) -> (), of RAW logits, with `log_prior` (C,) in which -inf leaves a class out.

    The sums over the batch are in the dtype of `log_prior`: bfloat16 cannot count beyond 256.
    """
    present = ~torch.isneginf(log_prior)  # (C,)
    log_uniform = -present.sum().to(log_prior.dtype).log()  # ()
    hits = logits.gather(1, targets[:, None]).squeeze(1).to(log_prior.dtype)  # (N,)
    sums = torch.zeros_like(log_prior).index_add(0, targets, hits)  # (C,)
    sizes = torch.zeros_like(log_prior).index_add(0, targets, torch.ones_like(hits))
    m = sums / sizes.clamp_min(1.0)
    raw = logits.to(log_prior.dtype)
    s = _ColumnNormaliser.apply(raw) - math.log(len(logits))
    s = s - torch.where(present, log_prior, 0.0) + log_uniform
    return -(log_prior.exp() * (m - s - lam * s**2)).sum().to(logits.dtype)


def lade(logits: Tensor, targets: Tensor, log_prior: Tensor, lam: float, alpha: float) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,): each sample's own term plus alpha * R of the batch."""
    balanced = logit_adjustment(logits, targets, log_prior.to(logits.dtype), 1.0)
    return balanced + alpha * lade_regulariser(logits, targets, log_prior, lam)


class LADE(Loss):
    """Balanced softmax plus a term that removes the training prior from the logits.

    The logits assume a uniform prior: to predict under another one, add its logarithm.

    Cost: three to four times cross-entropy's time on a CPU at 8142 classes, and a third more memory. R needs a second
    softmax, over the batch's samples instead of the classes, and its gradient is added to that of the first.

    Args:
        long_tail: class counts; a class without images is left out of both terms.
        lam: weight of the squared term, which keeps the bound stable, >= 0.
        alpha: weight of the regularizer, >= 0; 0 is balanced softmax.
    """

    def __init__(
        self,
        long_tail: LongTail,
        *,
        lam: NonNegative = 0.1,
        alpha: NonNegative = 0.1,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.lam = lam
        self.alpha = alpha

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        prior = log_prior(self.counts, exact(self.counts, logits))  # at least float32
        return lade(logits, targets, prior, self.lam, self.alpha)
