"""Interface of a sampler, the generator of an epoch, and draws with replacement."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def epoch_generator(seed: int, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one epoch; the order depends only on (seed, epoch), so a resumed run repeats it.

    SeedSequence mixes the two numbers: seed 0, epoch 1 and seed 1, epoch 0 must not share a stream, as they would with
    seed + epoch. torch's CPU generator reads 32 bits of its seed, so it gets 32 well mixed bits.
    """
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))


class Sampler:
    """The images of an epoch, and their order.

    A subclass implements `epoch`, a function of its arguments and the seed only. An epoch has as many images as the
    training set, whatever the batch size and the number of devices.

    Args:
        labels: (N,) int64 training labels; classes that do not occur in them are never drawn.
        seed: the run's seed.
    """

    def __init__(self, labels: Tensor, seed: int) -> None:
        self.labels = labels
        self.seed = seed
        self.rows = labels.argsort(stable=True)  # (N,) rows sorted by class
        self.sizes = torch.unique(labels, return_counts=True)[1]  # (K,) images per class that has any
        self.starts = self.sizes.cumsum(0) - self.sizes  # (K,) index in `rows` of the first image of each class

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        """(N,) rows of the images in this epoch, which is counted from 0 of `epochs`, in order."""
        raise NotImplementedError

    def draw(self, shares: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) rows drawn WITH replacement: a class by `shares` (K,), then one of its images uniformly.

        Without replacement an epoch of N draws from N images would show each image once, whatever the shares.
        """
        size = len(self.labels)
        classes = torch.multinomial(shares, size, replacement=True, generator=generator)  # (N,)
        place = torch.rand(size, dtype=torch.float64, generator=generator) * self.sizes[classes]
        return self.rows[self.starts[classes] + place.long()]
