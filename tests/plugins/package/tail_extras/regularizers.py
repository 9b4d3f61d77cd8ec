"""A regularizer of embeddings and one of learned text features.

[0] Bardes, Ponce, LeCun. VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning. ICLR 2022.
    Equation 1.
[1] Wang, Isola. Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere.
    ICML 2020. Section 4.1.2.

    Variance         mean_j max(0, gamma - sqrt(Var(e_j) + 1e-4))
    TextUniformity   log mean_{i < j} exp(-t |g_i - g_j|^2)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, RunText, StepOutputs
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.errors import InputError


class Variance(Regularizer):
    """Every dimension of a batch's embeddings keeps a standard deviation of at least gamma.

    Args:
        weight: factor of the term in the objective.
        gamma: the standard deviation from which on a dimension costs nothing.
    """

    def __init__(self, *, weight: NonNegative = 0.1, gamma: Positive = 1.0) -> None:
        super().__init__(weight)
        self.gamma = gamma

    def forward(self, outputs: StepOutputs) -> Tensor:
        deviation = (outputs.embeddings.var(dim=0, correction=0) + 1e-4).sqrt()  # (d,)
        return F.relu(self.gamma - deviation).mean()


class TextUniformity(Regularizer):
    """The learned text features of the classes are spread over the sphere.

    Args:
        text: the text side of the run; None for a run that learns no text features.
        weight: factor of the term in the objective.
        sharpness: t.

    Raises:
        InputError: a run that learns no text features.
    """

    def __init__(self, text: RunText | None, *, weight: NonNegative = 0.1, sharpness: Positive = 2.0) -> None:
        super().__init__(weight)
        if text is None:
            raise InputError("regularizer 'text_uniformity' needs text features that are learned; use a prompt method")
        self.sharpness = sharpness

    def forward(self, outputs: StepOutputs) -> Tensor:
        if outputs.text is None:
            raise InputError("regularizer 'text_uniformity' needs a head that learns text features")
        squared = torch.pdist(outputs.text).square()  # (C (C - 1) / 2,)
        return (-self.sharpness * squared).exp().mean().log()
