"""The interface of a head: a map from features to embeddings, and a classifier that is linear in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.errors import InputError


def check_rows(name: str, rows: Tensor, num_classes: int, width: int) -> None:
    """Refuse rows to start from, such as text features or prototypes, that are not (num_classes, width).

    Raises:
        InputError: another shape; `name` is that of the argument.
    """
    if rows.shape != (num_classes, width):
        raise InputError(
            f"`{name}` must have shape ({num_classes}, {width}), one row per class, got {tuple(rows.shape)}; pass rows "
            "for the same classes and of the same width"
        )


@torch.no_grad()
def linear_layer(width: int, num_classes: int, directions: Tensor | None = None, bias: bool = True) -> nn.Linear:
    """A linear layer with bias 0, whose weight starts from `directions` (C, w), or as torch initialises it if None.

    Raises:
        InputError: directions of another shape.
    """
    layer = nn.Linear(width, num_classes, bias=bias)
    if bias:
        layer.bias.zero_()
    if directions is not None:
        check_rows("directions", directions, num_classes, width)
        layer.weight.copy_(directions)
    return layer


class Head(nn.Module):
    """Features to logits, in two steps: an embedding, and a classifier that is linear in it.

    A subclass implements `embed` and `classifier`. Second stages, regularizers and metrics read the embedding, however
    it is computed.

    Attributes:
        learns_text: whether training changes the text features.
        text: (C, d) unit text features of the current step, for a head that learns them; None for all others.
        trained_tower: the image tower, for a head that trains one; None for all others.
        logit_scale: the fixed factor between cosines and logits; None for a head whose logits are not scaled cosines.
    """

    learns_text = False
    text: Tensor | None = None
    trained_tower: nn.Module | None = None
    logit_scale: float | None = None

    def embed(self, features: Tensor) -> Tensor:
        """(B, d) embeddings of features (B, w), or (B, T, w) for a head that reads tokens."""
        raise NotImplementedError

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        """Weight (C, d) and bias (C,) or None, such that logits = embeddings @ weight.T + bias."""
        raise NotImplementedError

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, d)."""
        return F.linear(embeddings, *self.classifier())

    def gather(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """Called after `classify` when a batch is split over several processes.

        A head that keeps one row per sample of this process replaces it by `gather_rows(rows)`, the rows of the whole
        batch.
        """

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        """Called with each training batch after its loss: embeddings (B, d) without gradient, targets (B,)."""

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> Head:
        """This head for other classes, given by their names; learned parameters are shared, not copied.

        Args:
            class_names: (M,) names of the other classes.
            text_features: returns the (M, d) unit text features of names, from the untouched text tower.

        Raises:
            InputError: the classifier is limited to the classes that it was made for.
        """
        raise InputError(
            f"classes that were not trained need a head that reads class names, got {type(self).__name__}; use tuning "
            "'prompt', or 'zero_shot' with head 'text'"
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.embed(features))
        return logits
