"""What may stand between a step's loss and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from imbalance_vlm.balancing.regularizers.base import Seen

Snapshot = Mapping[str, Tensor]


class Gradient(nn.Module):
    """The plain way: the loss's own gradient. A subclass changes it; what it remembers is a buffer.

    A transform that learns from a training of its own (a first pass) says for how many epochs, and is given the trained
    parameters as they were behind each of them; the head then starts anew.
    """

    @property
    def is_linear(self) -> bool:
        """Whether the gradient of a sum of losses is the sum of their gradients."""
        return True

    @property
    def first_epochs(self) -> int:
        """Epochs of the first pass; 0 for none."""
        return 0

    def learn(self, snapshots: Sequence[Snapshot]) -> None:
        """Told of the first pass: the trained parameters by name, behind each of its epochs."""

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Told of the trained parameters by name, at their start, before the first step and before a resumed one."""

    def backward(self, loss: Tensor, seen: Seen) -> None:
        """Leave in each parameter's `grad` what the optimizer shall see."""
        loss.backward()

    def after_step(self) -> None:
        """Called behind each step of the optimizer."""
