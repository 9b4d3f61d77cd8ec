"""What training minimises: the loss and the regularizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient, PlainGradient
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.heads.base import Head


class Objective(nn.Module):
    """Features (B, ...) and targets (B,) to one number.

    One module, so that a checkpoint of it holds the head and the state of the loss and the regularizers.

    Args:
        head: what is trained.
        criterion: the loss.
        regularizers: added with their weights.
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
        """Embeddings (B, d) and logits (B, C), sample by sample: of several processes, each has its own samples."""
        embeddings = self.head.embed(features)
        return embeddings, self.head.classify(embeddings)

    def gather(self, together: Callable[[Tensor], Tensor]) -> None:
        """Called between `outputs` and `value` if processes computed parts of the batch, whose outputs are gathered."""
        self.head.gather(together)
        for regularizer in self.regularizers:
            if isinstance(regularizer, Regularizer):
                regularizer.gather(together)

    def value(self, embeddings: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """The number to minimise, of a whole batch of outputs."""
        value = self.criterion(logits, targets, embeddings).mean()
        self.step_outputs = StepOutputs(embeddings, targets, logits, self.head.text, self._buffers["frozen_text"])
        for regularizer in self.regularizers:
            value = value + regularizer.weight * regularizer(self.step_outputs)
        self.head.observe(embeddings.detach(), targets)
        return value

    def backward(self, loss: Tensor) -> None:
        """The gradients of the loss that `forward` gave last, as the transform leaves them."""
        self.gradient.backward(loss, self.step_outputs)
