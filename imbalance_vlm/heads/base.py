"""What every head is: a map from features to embeddings, and a classifier that is linear in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.errors import InputError


class Head(nn.Module):
    """Features to logits, in two steps that second stages, regularizers and metrics can tell apart.

    A subclass writes `embed` and `classifier`. The embedding is what its classifier reads: anything that wants class
    means, angles or another classifier works there, whatever lies before it.

    Attributes:
        reads: "pooled" features (B, w), or all "tokens" (B, T, w).
        learns_text: whether training changes the text features.
        text: (C, d) unit text features of this step, for a head that learns them; None for all others.
    """

    reads = "pooled"
    learns_text = False
    text: Tensor | None = None

    def embed(self, features: Tensor) -> Tensor:
        """(B, d) embeddings of features (B, w), or (B, T, w) for a head that reads tokens."""
        raise NotImplementedError

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        """Weight (C, d) and bias (C,) or None, such that logits = embeddings @ weight.T + bias."""
        raise NotImplementedError

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, d)."""
        return F.linear(embeddings, *self.classifier())

    def gather(self, together: Callable[[Tensor], Tensor]) -> None:
        """Called behind `classify` where that ran on this process's part of the batch alone: what is made of all its
        samples, such as `text`, `together` gives the whole batch's rows for."""

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        """Told of each training batch after its loss, embeddings (B, d) without gradient, targets (B,)."""

    def for_names(self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor]) -> Head:
        """This head over other classes, given by name; what it has learned is shared, not copied.

        Args:
            class_names: (M,) names of the other classes.
            text_features: (M, d) unit text features of names, from the untouched tower.

        Raises:
            InputError: a classifier that does not read class names.
        """
        raise InputError(
            f"classes that were not trained need a head that reads their names, got {type(self).__name__}, which knows "
            "its own classes alone; use tuning 'prompt', or 'zero_shot' with head 'text'"
        )

    @property
    def learns_embedding(self) -> bool:
        """Whether training changes the embedding, or the classifier alone."""
        return False

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.embed(features))
        return logits
