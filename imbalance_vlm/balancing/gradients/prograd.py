"""ProGrad: the loss's gradient without what would undo the zero-shot model's knowledge.

[0] Zhu, Niu, Han, Wu, Zhang. Prompt-aligned Gradient for Prompt Tuning. ICCV 2023.
[1] github.com/BeierZhu/Prompt-align, trainers/prograd.py (ProGradLoss, prograd_backward_and_update); lambda 1, T 1

    g = gradient of everything that is minimised,   k = gradient of T^2 KL(softmax(z0 / T) || softmax(z / T))
    g <- g - lambda <g, k> / <k, k> k     where <g, k> < 0,     each parameter tensor by itself

z0 are the zero-shot logits of the same image features: exp(logit_scale) * cos(f, t_frozen). As in [1] the product is
taken for each parameter tensor, not over all of them; CoOp has only one.

Differs from [1] in: it has the cross-entropy to the zero-shot distribution, whose gradient is that of the KL; a k of
zero leaves g as it is, instead of dividing by zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.regularizers.base import Seen
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.errors import InputError


def aligned(own: Tensor, guide: Tensor, strength: float) -> Tensor:
    """`own` less `strength` times its projection on `guide`, where the two point apart; no look at the values."""
    product, square = (own * guide).sum(), guide.square().sum()
    share = torch.where(square > 0, product.clamp_max(0.0) / square.clamp_min(torch.finfo(own.dtype).tiny), 0.0)
    return own - strength * share * guide


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), mean over the batch, of logits (N, C) each -> ()."""
    given = (teacher / temperature).log_softmax(1)
    learned = (logits / temperature).log_softmax(1)
    return temperature**2 * (given.exp() * (given - learned)).sum(1).mean()


class ProGrad(Gradient):
    """Takes out of each gradient what points against the zero-shot model's predictions.

    It costs a second backward pass. The image features are those that the head classifies, without their gradient.

    Args:
        scale: exp(logit_scale) of the zero-shot logits; None for the one that the head's own logits have.
        strength: lambda.
        temperature: T of both distributions.

    Raises:
        InputError: a head that learns no text.
    """

    def __init__(self, scale: float | None = None, *, strength: NonNegative = 1.0, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.strength = strength
        self.temperature = temperature
        self._trained: list[nn.Parameter] = []

    @property
    def is_linear(self) -> bool:
        return False

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._trained = list(parameters.values())

    def backward(self, loss: Tensor, seen: Seen) -> None:
        value = divergence(seen.logits, self._zero_shot(seen), self.temperature)
        guides = torch.autograd.grad(value, self._trained, retain_graph=True, allow_unused=True)
        loss.backward()
        for parameter, guide in zip(self._trained, guides, strict=True):
            if guide is not None and parameter.grad is not None:
                parameter.grad = aligned(parameter.grad, guide, self.strength)

    def _zero_shot(self, seen: Seen) -> Tensor:
        """(N, C) logits of the untouched text tower."""
        if seen.frozen_text is None or seen.text is None:
            raise InputError(
                "gradient transform 'prograd' compares with the zero-shot model, which needs a prompt method that "
                "learns text; set tuning to one, such as {name: prompt, method: coop}"
            )
        embeddings = seen.embeddings.detach()
        scale: float | Tensor | None = self.scale
        if scale is None:  # logits = scale * cosine, so this is the scale, whatever the batch
            cosines = embeddings @ seen.text.detach().to(embeddings.dtype).t()
            scale = (seen.logits.detach() * cosines).sum() / cosines.square().sum()
        return scale * embeddings @ seen.frozen_text.to(embeddings.dtype).t()
