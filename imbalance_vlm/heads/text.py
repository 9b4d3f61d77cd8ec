"""The zero-shot classifier.

[0] Radford et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.

    z_c = exp(logit_scale) * cos(f, t_c)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.errors import InputError


class TextHead(nn.Module):
    """Cosine to the text features of the class names, times the model's own scale: (B, d) -> (B, C).

    Args:
        width: d.
        num_classes: C.
        directions: (C, d) unit text features; template ensembles are averaged before they come here.
        scale: the model's exp(logit_scale).
    """

    reads = "pooled"

    def __init__(self, width: int, num_classes: int, directions: Tensor | None = None, scale: float = 100.0) -> None:
        super().__init__()
        if directions is None or directions.shape != (num_classes, width):
            came = None if directions is None else tuple(directions.shape)
            raise InputError(f"`directions` must be text features of shape ({num_classes}, {width}), got {came}")
        self.register_buffer("weight", directions.detach().clone())
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ self.weight.t()  # type: ignore[operator]
