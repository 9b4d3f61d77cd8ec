"""Several linear classifiers on the same features: SADE's experts on a frozen tower.

[0] Zhang, Hooi, Hong, Feng. Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition.
    NeurIPS 2022.

    z_e = W_e f_e + b_e,   f_e = f, or the output of the expert's own adapter;   z = sum_e v_e z_e,   v = 1/3

Differs from [0] in: the experts share the whole tower, which is frozen, where [0] gives each its own last stage; an
adapter per expert takes its place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Natural
from imbalance_vlm.heads.base import Head, linear_layer
from imbalance_vlm.heads.feature_adapter import FeatureAdapter

EXPERTS = 3


class ExpertsHead(Head):
    """Three linear classifiers: (B, w) -> (B, 3, C) in training mode, their mean (B, C) in evaluation mode.

    As in [0] the logits are averaged, not the probabilities, so that the mean is a linear classifier too. With adapters
    the embedding is that of all three experts side by side, (B, 3 w), and each classifier reads its own third.

    Args:
        width: width of the features.
        num_classes: C.
        directions: (C, w) unit rows to start each W from; None for a random start.
        init: what each W starts from: "random" (torch's default), "text" (the text features of the class names) or
            "class_mean" (the classes' mean training features); each b starts at 0.
        normalise: scale the features to unit norm times sqrt(w), so that one learning rate fits every encoder.
        adapter: hidden width of a residual bottleneck before each classifier; 0 for none.
    """

    mixture: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        directions: Tensor | None = None,
        *,
        init: Literal["random", "text", "class_mean"] = "random",
        normalise: bool = True,
        adapter: Natural = 0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear_layer(width, num_classes, directions) for _ in range(EXPERTS))
        self.adapters = nn.ModuleList(FeatureAdapter(width, adapter) for _ in range(EXPERTS if adapter else 0))
        self.normalise = normalise
        self.register_buffer("mixture", torch.full((EXPERTS,), 1.0 / EXPERTS))  # (3,) v

    def embed(self, features: Tensor) -> Tensor:
        """(B, w) embeddings, or (B, 3 w) with adapters."""
        if self.normalise:
            features = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5  # entries of unit variance
        return torch.cat([adapter(features) for adapter in self.adapters], 1) if len(self.adapters) else features

    def experts(self) -> tuple[Tensor, Tensor]:
        """Weights (3, C, d) and biases (3, C) on the whole embedding; with adapters, zero outside an expert's third."""
        weights = torch.stack([layer.weight for layer in self._layers()])  # (3, C, w)
        biases = torch.stack([layer.bias for layer in self._layers()])
        if not len(self.adapters):
            return weights, biases
        thirds = torch.eye(EXPERTS, dtype=weights.dtype, device=weights.device)  # (3, 3) selects each expert's third
        return (thirds[:, None, :, None] * weights[:, :, None]).flatten(2), biases  # (3, C, 3, w) -> (3, C, 3 w)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        """(C, d) and (C,) of the mean of the experts."""
        parts = [share * layer.weight for share, layer in zip(self.mixture, self._layers(), strict=True)]
        bias = torch.stack([share * layer.bias for share, layer in zip(self.mixture, self._layers(), strict=True)])
        weight = torch.cat(parts, dim=1) if len(self.adapters) else torch.stack(parts).sum(0)
        return weight, bias.sum(0)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (B, 3, C) in training mode, their mean (B, C) in evaluation mode."""
        if not self.training:
            return F.linear(embeddings, *self.classifier())
        inputs = embeddings.chunk(EXPERTS, dim=1) if len(self.adapters) else (embeddings,) * EXPERTS
        return torch.stack([layer(f) for layer, f in zip(self.layers, inputs, strict=True)], dim=1)

    def _layers(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]
