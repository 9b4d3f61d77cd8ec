"""Interface of a post-hoc correction: a map of logits, fitted on validation logits if a setting is left open."""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.long_tail import LongTail


class PostHoc(nn.Module):
    """Logits (B, C) to corrected logits (B, C).

    A subclass learns in `fit`. Everything learned is a buffer, so that a new instance is restored from a state_dict.

    Args:
        long_tail: the training counts and groups.
    """

    def __init__(self, long_tail: LongTail) -> None:
        super().__init__()
        self.long_tail = long_tail

    @property
    def needs_validation(self) -> bool:
        """Whether a setting is left open, to be chosen on the validation set."""
        return False

    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        """Choose the settings that are left open, from validation logits (N, C) and labels (N,).

        Both are None if the dataset has no validation split; `needs_validation` is then False.

        Returns:
            The chosen values, by the name of the setting.
        """
        del logits, labels
        return {}

    def forward(self, logits: Tensor) -> Tensor:
        raise NotImplementedError
