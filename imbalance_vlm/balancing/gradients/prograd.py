"""ProGrad: the gradient of the loss without the part that opposes the zero-shot model.

[0] Zhu, Niu, Han, Wu, Zhang. Prompt-aligned Gradient for Prompt Tuning. ICCV 2023.
[1] github.com/BeierZhu/Prompt-align, trainers/prograd.py (ProGradLoss, prograd_backward_and_update); lambda 1, T 1

    g = gradient of the whole objective,   k = gradient of T^2 KL(softmax(z0 / T) || softmax(z / T))
    g <- g - lambda <g, k> / <k, k> k     where <g, k> < 0,     for each parameter tensor separately

z0 are the zero-shot logits of the same image features: exp(logit_scale) * cos(f, t_frozen). As in [1] the product is
taken for each parameter tensor, not over all of them (CoOp has only one).

Differs from [1] in: [1] uses the cross-entropy to the zero-shot distribution, whose gradient is that of the KL; a zero
k leaves g as it is, instead of dividing by zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.distill import divergence
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.errors import InputError


def aligned(gradient: Tensor, guide: Tensor, strength: float) -> Tensor:
    """`gradient` minus `strength` times its projection on `guide`, where the two conflict.

    No control flow depends on the values, which would force a device sync.
    """
    product, square = (gradient * guide).sum(), guide.square().sum()
    share = torch.where(square > 0, product.clamp_max(0.0) / square.clamp_min(torch.finfo(gradient.dtype).tiny), 0.0)
    return gradient - strength * share * guide


class ProGrad(Gradient):
    """Removes from each gradient the part that points against the zero-shot model's predictions.

    It costs a second backward pass. The image features are those that the head classifies, detached.

    Args:
        logit_scale: exp(logit_scale) of the zero-shot logits, the scale of the head.
        strength: share lambda of the conflicting part that is removed.
        temperature: temperature T of both distributions.

    Raises:
        InputError: a head that learns no text.
    """

    def __init__(self, logit_scale: float, *, strength: NonNegative = 1.0, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.logit_scale = logit_scale
        self.strength = strength
        self.temperature = temperature
        self._trained: list[nn.Parameter] = []

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._trained = list(parameters.values())

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        kl = divergence(outputs.logits, self._zero_shot(outputs), self.temperature).mean()
        guides = torch.autograd.grad(kl, self._trained, retain_graph=True, allow_unused=True)
        loss.backward()
        for parameter, guide in zip(self._trained, guides, strict=True):
            if guide is not None and parameter.grad is not None:
                parameter.grad = aligned(parameter.grad, guide, self.strength)

    def _zero_shot(self, outputs: StepOutputs) -> Tensor:
        """(N, C) logits of the frozen text tower."""
        if outputs.frozen_text is None or outputs.text is None:
            raise InputError(
                "gradient transform 'prograd' compares with the zero-shot model, which needs a prompt method that "
                "learns text; set tuning to one, such as {name: prompt, method: coop}"
            )
        embeddings = outputs.embeddings.detach()
        return self.logit_scale * embeddings @ outputs.frozen_text.to(embeddings.dtype).t()
