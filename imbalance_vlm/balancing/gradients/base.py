"""Interface of a gradient transform, which acts between the loss of a step and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from imbalance_vlm.balancing.regularizers.base import StepOutputs

Snapshot = Mapping[str, Tensor]


class Gradient(nn.Module):
    """Base class of gradient transforms; what a transform keeps between steps is a buffer.

    A transform that learns from a training of its own (a first pass) declares its length in `first_epochs` and receives
    the trained parameters as they were after each of its epochs; then the head starts again.
    """

    @property
    def is_linear(self) -> bool:
        """Whether the gradient of a sum is the sum of the gradients.

        Only then may a batch be computed in parts, or by several processes that average their gradients.
        """
        return False

    @property
    def first_epochs(self) -> int:
        """Epochs of the first pass; 0 for none."""
        return 0

    def learn(self, snapshots: Sequence[Snapshot]) -> None:
        """Receives the first pass: the trained parameters by name, after each of its epochs."""

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Receives the trained parameters by name, at their start; called before the first step, also of a resumed
        run."""

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        """Store in each parameter's `grad` what the optimizer reads."""
        loss.backward()

    def after_step(self) -> None:
        """Called after each step of the optimizer."""


class PlainGradient(Gradient):
    """The gradient of the loss, unchanged."""

    @property
    def is_linear(self) -> bool:
        return True
