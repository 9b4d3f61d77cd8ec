"""Interface of a gradient transform, which acts between the loss of a step and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from imbalance_vlm.balancing.regularizers.base import StepOutputs

Snapshot = Mapping[str, Tensor]
"""Trained parameters by name, after an epoch of the first pass."""


class Gradient(nn.Module):
    """Base class of gradient transforms; state kept between steps is a buffer.

    A transform that needs a first pass of training declares its length in `first_epochs` and receives the trained
    parameters after each of these epochs in `learn`; then the head starts again.
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
        """Called after the first pass with the trained parameters after each of its epochs."""

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Called with the initial trained parameters by name before the first step, also of a resumed run."""

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        """Compute the gradients of the loss, transform them and store them in the parameters."""
        loss.backward()

    def after_step(self) -> None:
        """Called after each step of the optimizer."""


class PlainGradient(Gradient):
    """The gradient of the loss, unchanged."""

    @property
    def is_linear(self) -> bool:
        return True
