"""Losses by name."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import offer
from imbalance_vlm.components.settings import checked_settings
from imbalance_vlm.long_tail import LongTail


def create_loss(name: str, class_counts: LongTail | ArrayLike, **settings: Any) -> Loss:
    """A loss by its recipe name: a module called `loss(logits, targets)`.

    Args:
        name: one of `list_losses()`.
        class_counts: (C,) training images of each class, or a LongTail.
        settings: settings of the loss, as in a recipe. A loss on cosines needs `head_scale`, the factor between cosines
            and logits.

    Raises:
        InputError: an unknown name or setting, a value out of range, or a class without images.

    >>> import torch
    >>> loss = create_loss("balanced_softmax", [90, 10])
    >>> round(float(loss(torch.zeros(1, 2), torch.tensor([1]))), 4)  # -log(10 / 100)
    2.3026
    """
    catalogue.load_plugins()
    entry = catalogue.LOSSES.get(name)
    long_tail = LongTail.of(class_counts)
    loss: Loss = entry.make(
        {"name": name, **checked_settings(f"loss '{name}'", entry.settings(), settings)},
        offer(long_tail=long_tail, num_classes=long_tail.num_classes),
    )
    return loss
