"""Interface of a post-hoc correction: a map of logits, fitted on validation logits where a setting is left open."""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.long_tail import LongTail


class PostHoc(nn.Module):
    """Logits (B, C) to corrected logits (B, C).

    A subclass is constructed blank and learns in `fit`. Everything learned is a buffer, so that loading a state_dict
    into a blank one restores it.

    Args:
        long_tail: the training counts and groups.
    """

    def __init__(self, long_tail: LongTail) -> None:
        super().__init__()
        self.long_tail = long_tail

    @property
    def needs_validation(self) -> bool:
        """Whether these settings leave a choice to the validation set."""
        return False

    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        """Choose the settings that are left open, from validation logits (N, C) and labels (N,).

        Both are None where the dataset has no validation split; `needs_validation` is then False.

        Returns:
            What was chosen, by the name of the setting.
        """
        del logits, labels
        return {}

    def forward(self, logits: Tensor) -> Tensor:
        raise NotImplementedError
