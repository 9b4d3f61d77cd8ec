"""What every way of tuning says: what the head is, what it reads, and what of it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.regularizers.base import Regularizer
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.heads.base import Head


@dataclass(frozen=True)
class Task:
    """What a way of tuning may build on.

    Args:
        encoder: frozen, shared by the runs of a study, on its device.
        kind: the image features that the recipe's head reads; see `imbalance_vlm.encoders.base.KINDS`.
        class_names: (C,) names.
        novel_names: names of classes that are tested and never trained; empty without any.
        templates: sentences with one `{}`.
        device: of the encoder.
        epochs: of the training.
        seed: of the run.
        flips: whether a mirrored image still shows its class.
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


class Tuning:
    """A way of tuning; its settings are keyword-only.

    Attributes:
        trains: whether there are passes over the training set.
        reads_pixels: whether the head runs the image tower itself at each step, as it must when that is trained.
    """

    trains = True
    reads_pixels = False

    def transforms(self, task: Task) -> list[View]:
        """One transform of the training images for each view; epoch e reads view e mod k."""
        return view_transforms(task.encoder, 0, 1.0, task.flips)

    def head(self, task: Task, plain: Callable[[], Head]) -> Head:
        """The head of the run: the recipe's own, made by `plain`, or one around or in place of it."""
        return plain()

    def regularizers(self, task: Task) -> list[Regularizer]:
        """Terms that belong to the method, beside those of the recipe."""
        return []

    def gradient(self, task: Task) -> Gradient | None:
        """The method's own gradient transform, where the recipe names none."""
        return None

    def parameters(self, head: Head) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in head.parameters() if parameter.requires_grad]

    def groups(self, head: Head) -> list[dict[str, Any]]:
        """What is trained, as an optimizer takes it: groups of `params`, some with an `lr_scale` on their rate."""
        return [{"params": self.parameters(head)}]

    def base(self) -> AbstractContextManager[None]:
        """The untouched tower for as long as this lasts, for features that are asked for once the head is made."""
        return nullcontext()

    def after_epoch(self, head: Head, epoch: int) -> None:
        """Called behind each epoch of the run's own training, counted from 1."""

    def finish(self, head: Head) -> None:
        """Called once, behind the last step of the training and before anything reads its result."""

    def close(self) -> None:
        """Leave the shared encoder as it was; called when the run is over, also when it failed."""
