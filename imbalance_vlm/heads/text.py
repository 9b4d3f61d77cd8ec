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
        text: (C, d) unit text features; template ensembles are already averaged.
        logit_scale: exp(logit_scale) of the model.
    """

    weight: Tensor

    def __init__(self, text: Tensor, logit_scale: float = 100.0) -> None:
        super().__init__()
        if text.ndim != 2:
            raise InputError(f"`text` must be text features of shape (C, d), got {tuple(text.shape)}")
        self.register_buffer("weight", text.detach().clone())
        self.logit_scale: float = logit_scale

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.logit_scale * self.weight, None

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.logit_scale * embeddings @ self.weight.t()

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> TextHead:
        if text_features is None:
            raise InputError("`text_features` must give the text features of the new names, got none")
        return TextHead(text_features(class_names), self.logit_scale).to(self.weight.device)
