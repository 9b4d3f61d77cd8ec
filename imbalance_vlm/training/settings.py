"""The settings of a recipe's `training` section, other than its optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from imbalance_vlm.components.ranges import ComputeOnly, Count, NonNegative, Part, Positive, Share
from imbalance_vlm.components.settings import SettingGroup


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(SettingGroup):
    """How long a head is trained, and how a step of it is computed.

    Args:
        epochs: passes over the training set.
        batch_size: images per step, over all devices; the last batch of an epoch may be smaller.
        accumulate: number of parts in which a batch is computed, one after the other, to save memory. The gradient is
            that of the whole batch, but a loss or regularizer that compares the samples of a batch sees those of a
            part.
        clip_grad_norm: largest norm of the gradient; null does not clip.
        ema: decay of an exponential moving average of the head's weights, which is then the result; 0 for none.
        interpolation: the result is start + interpolation * (trained - start), as in WiSE-FT; 1 is the trained head.
        compile: run the head (and the tower in it) through torch.compile, which takes minutes at the start; where it
            fails, training continues without it.
        shard: shard the trained tower over the processes, if it does not fit on one device; the numbers are the same.
            No effect in one process. A run does it with `shard_tower` before it makes the optimizer.
        checkpoint_seconds: time between checkpoints. One is written after the first step past that time; where writing
            is slow, less often, so that it takes at most a twentieth of the time.
    """

    epochs: Count = 50
    batch_size: Count = 512
    accumulate: Count = 1
    clip_grad_norm: Positive | None = None
    ema: Share = 0.0
    interpolation: Part = 1.0
    compile: bool = False
    shard: Annotated[bool, ComputeOnly] = False
    checkpoint_seconds: Annotated[NonNegative, ComputeOnly] = 30.0
