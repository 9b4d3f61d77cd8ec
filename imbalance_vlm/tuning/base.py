"""Interface of a tuning method: the head of a run, the images that it reads, and the parameters that are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.regularizers.base import Regularizer, RunText
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.heads.base import Head


@dataclass(frozen=True)
class TuningContext:
    """The parts of a run that a tuning uses.

    Args:
        encoder: frozen, shared by the runs of a study, on its device.
        kind: the image features that the recipe's head reads; see `imbalance_vlm.encoders.base.KINDS`.
        class_names: (C,) names of the trained classes.
        novel_names: names of classes that are tested but not trained; empty if there are none.
        templates: sentences with one `{}` each.
        device: device of the encoder.
        epochs: number of epochs of the training.
        seed: seed of the run.
        flips: whether mirrored images keep their class.
        text_features: (class names, templates) to (M, d) unit text features of the untouched text tower. The runs of a
            study share them: do not change them in place.
    """

    encoder: Encoder
    kind: str
    class_names: Sequence[str]
    novel_names: Sequence[str]
    templates: Sequence[str]
    device: torch.device
    epochs: int
    seed: int
    flips: bool
    text_features: Callable[[Sequence[str], Sequence[str]], Tensor]


class Tuning:
    """Base class of tunings; the settings of a subclass are keyword-only.

    All checks belong in `head`, which must raise if the tuning cannot be trained. Making a tuning and its head encodes
    no images, and `close` restores the shared encoder.

    Attributes:
        trains: whether anything is trained.
        reads_pixels: whether the head runs the image tower itself at each step, as a trained tower requires.
    """

    trains = True
    reads_pixels = False

    def transforms(self, context: TuningContext) -> list[View]:
        """Transforms of the training images, one per view; epoch e reads view e mod k."""
        return view_transforms(context.encoder, 0, 1.0, context.flips)

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        """The head of the run: the recipe's own, which `plain` makes, or one that wraps or replaces it."""
        return plain()

    def text(self, context: TuningContext, head: Head) -> RunText | None:
        """The text side of the run for regularizers on learned text; None where no text is learned."""
        return None

    def regularizers(self, context: TuningContext) -> list[Regularizer]:
        """Terms of the method itself, in addition to those of the recipe; called after `head`."""
        return []

    def gradient(self, context: TuningContext) -> Gradient | None:
        """The method's own gradient transform, used if the recipe names none."""
        return None

    def parameters(self, head: Head) -> list[nn.Parameter]:
        """The trained parameters."""
        return [parameter for parameter in head.parameters() if parameter.requires_grad]

    def groups(self, head: Head) -> list[dict[str, Any]]:
        """The trained parameters in groups for the optimizer: `params`, and optionally `lr_scale` of their rate."""
        return [{"params": self.parameters(head)}]

    def base(self) -> AbstractContextManager[None]:
        """Within this context manager the encoder is untouched, for features that are needed once the head is made."""
        return nullcontext()

    def after_epoch(self, head: Head, epoch: int) -> None:
        """Called after each epoch of the run's own training, counted from 1."""

    def finish(self, head: Head) -> None:
        """Called once, after the last step of the training and before its result is read."""

    def close(self) -> None:
        """Restore the shared encoder; called at the end of a run, also of a failed one."""
