"""The interface of a head: a map from features to embeddings, and a classifier that is linear in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.errors import InputError


class Head(nn.Module):
    """Features to logits, in two steps: an embedding, and a classifier that is linear in it.

    A subclass implements `embed` and `classifier`. Second stages, regularizers and metrics work on the embedding,
    whatever comes before it.

    Attributes:
        learns_text: whether training changes the text features.
        text: (C, d) unit text features of the current step, for a head that learns them; None for all others.
        trained_tower: the image tower, for a head that runs one that is trained with it; None for all others.
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

        A head that keeps values of its samples (such as `text`) replaces them by those of the whole batch:
        `gather_rows` turns this process's rows into all rows.
        """

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        """Receives each training batch after its loss: embeddings (B, d) without gradient, targets (B,)."""

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> Head:
        """This head over other classes, given by their names; what it has learned is shared, not copied.

        Args:
            class_names: (M,) names of the other classes.
            text_features: gives the (M, d) unit text features of names, from the untouched text tower.

        Raises:
            InputError: the classifier knows its own classes only.
        """
        raise InputError(
            f"classes that were not trained need a head that reads class names, got {type(self).__name__}; use tuning "
            "'prompt', or 'zero_shot' with head 'text'"
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.embed(features))
        return logits
