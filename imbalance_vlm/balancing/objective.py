"""What training minimises: the loss plus the weighted regularizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient, PlainGradient
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.heads.base import Head


class Objective(nn.Module):
    """Features (B, ...) and targets (B,) to a scalar.

    It is one module, so that a checkpoint holds the head and the state of the loss and of the regularizers.

    Args:
        head: the head, which is trained.
        criterion: the loss.
        regularizers: terms that are added with their weights.
        gradient: transforms the gradient of the loss before the optimizer reads it.
        frozen_text: (C, d) unit text features of the untouched tower, for the regularizers that compare with them.
    """

    step_outputs: StepOutputs

    def __init__(
        self,
        head: Head,
        criterion: Loss,
        regularizers: Sequence[Regularizer] = (),
        gradient: Gradient | None = None,
        frozen_text: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.criterion = criterion
        self.regularizers = nn.ModuleList(regularizers)
        self.gradient = gradient or PlainGradient()
        self.register_buffer("frozen_text", frozen_text, persistent=False)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0 of `epochs`."""
        self.criterion.on_epoch(epoch, epochs)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        return self.value(*self.outputs(features), targets)

    def outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, d) and logits (B, C) of the samples of this process."""
        embeddings = self.head.embed(features)
        return embeddings, self.head.classify(embeddings)

    def gather(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """Called between `outputs` and `value` if several processes computed parts of the batch; see `Head.gather`."""
        self.head.gather(gather_rows)
        for regularizer in self.regularizers:
            if isinstance(regularizer, Regularizer):
                regularizer.gather(gather_rows)

    def value(self, embeddings: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """The scalar to minimise, from the outputs of a whole batch."""
        value = self.criterion(logits, targets, embeddings).mean()
        self.step_outputs = StepOutputs(embeddings, targets, logits, self.head.text, self._buffers["frozen_text"])
        for regularizer in self.regularizers:
            value = value + regularizer.weight * regularizer(self.step_outputs)
        self.head.observe(embeddings.detach(), targets)
        return value

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the last value, transformed, and store them in the parameters."""
        self.gradient.backward(loss, self.step_outputs)
