"""timm's learning-rate schedules, stepped by update: the rate is a function of the step, so resuming needs no state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from imbalance_vlm.components.ranges import NonNegative, Positive

if TYPE_CHECKING:  # timm is a slow import, which checking a recipe can do without
    from timm.scheduler.scheduler import Scheduler


def cosine(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: NonNegative = 0.0,
    warmup_lr: NonNegative = 1e-5,
    lr_min: NonNegative = 0.0,
) -> Scheduler:
    """Half a cosine from the peak to `lr_min` over all steps.

    Args:
        optimizer: whose rate is set.
        epochs: length of training.
        steps_per_epoch: updates to an epoch.
        warmup_epochs: linear warm-up before it, part of the epochs.
        warmup_lr: where the warm-up starts.
        lr_min: where the cosine ends.
    """
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps_per_epoch,
        lr_min=lr_min,
        warmup_t=round(warmup_epochs * steps_per_epoch),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )


def held_cosine(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: NonNegative = 1.0,
    warmup_lr: NonNegative = 1e-5,
    lr_min: NonNegative = 0.0,
) -> Scheduler:
    """`cosine` whose warm-up stays at `warmup_lr`, as that of the prompt papers does.

    Args:
        optimizer: whose rate is set.
        epochs: length of training.
        steps_per_epoch: updates to an epoch.
        warmup_epochs: how long the rate is held, part of the epochs.
        warmup_lr: the rate that is held.
        lr_min: where the cosine ends.
    """
    made = cosine(optimizer, epochs, steps_per_epoch, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr, lr_min=lr_min)
    made.warmup_steps = [0.0 for _ in made.base_values]  # what each update adds to it
    return made


def multistep(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    milestones: list[int],
    factor: Positive = 0.1,
    warmup_epochs: NonNegative = 0.0,
    warmup_lr: NonNegative = 1e-5,
) -> Scheduler:
    """The rate is multiplied by `factor` at each epoch of `milestones`.

    Args:
        optimizer: whose rate is set.
        epochs: length of training.
        steps_per_epoch: updates to an epoch.
        milestones: epochs, counted from 0, at whose beginning the rate drops.
        factor: of each drop.
        warmup_epochs: linear warm-up, part of the epochs.
        warmup_lr: where the warm-up starts.
    """
    from timm.scheduler import MultiStepLRScheduler

    return MultiStepLRScheduler(
        optimizer,
        decay_t=[epoch * steps_per_epoch + 1 for epoch in sorted(milestones)],  # timm drops one step early
        decay_rate=factor,
        warmup_prefix=False,
        warmup_t=round(warmup_epochs * steps_per_epoch),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )


def constant(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: NonNegative = 0.0,
    warmup_lr: NonNegative = 1e-5,
) -> Scheduler:
    """The rate stays at its peak.

    Args:
        optimizer: whose rate is set.
        epochs: length of training.
        steps_per_epoch: updates to an epoch.
        warmup_epochs: linear warm-up before it.
        warmup_lr: where the warm-up starts.
    """
    return multistep(
        optimizer, epochs, steps_per_epoch, milestones=[], warmup_epochs=warmup_epochs, warmup_lr=warmup_lr
    )
