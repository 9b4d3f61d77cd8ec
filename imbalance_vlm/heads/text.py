"""The zero-shot classifier.

[0] Radford et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.

    z_c = exp(logit_scale) * cos(f, t_c)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head


class TextHead(Head):
    """Cosine to the text features of the class names, times the model's own scale: (B, d) -> (B, C).

    Args:
        width: d.
        num_classes: C.
        directions: (C, d) unit text features; template ensembles are averaged before they come here.
        scale: the model's exp(logit_scale).
    """

    weight: Tensor

    def __init__(self, width: int, num_classes: int, directions: Tensor | None = None, scale: float = 100.0) -> None:
        super().__init__()
        if directions is None or directions.shape != (num_classes, width):
            came = None if directions is None else tuple(directions.shape)
            raise InputError(f"`directions` must be text features of shape ({num_classes}, {width}), got {came}")
        self.register_buffer("weight", directions.detach().clone())
        self.scale = scale

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.scale * self.weight, None

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.scale * embeddings @ self.weight.t()

    def for_names(self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor]) -> TextHead:
        directions = text_features(class_names)  # (M, d)
        head = TextHead(directions.shape[1], len(class_names), directions, self.scale)
        return head.to(self.weight.device)
