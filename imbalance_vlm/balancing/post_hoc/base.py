"""What every post-hoc correction is: a map of logits, fitted on the validation logits where it has to choose."""

from __future__ import annotations

from torch import Tensor, nn

from imbalance_vlm.long_tail import LongTail


class PostHoc(nn.Module):
    """Logits (B, C) to corrected logits (B, C).

    A subclass is made blank (its settings are keyword-only); everything learned in `fit` is a buffer, so that a blank
    one and a state_dict give it back.

    Args:
        tail: the training counts and groups.
    """

    def __init__(self, tail: LongTail) -> None:
        super().__init__()
        self.tail = tail

    @property
    def needs_validation(self) -> bool:
        """Whether these settings leave a choice to the validation set."""
        return False

    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        """Choose what the settings leave open from validation logits (N, C) and labels (N,).

        Both are None where the dataset has no validation split; `needs_validation` is then False.

        Returns:
            What was chosen, by the name of the setting.
        """
        del logits, labels
        return {}

    def forward(self, logits: Tensor) -> Tensor:
        raise NotImplementedError
