"""Instance-balanced sampling: every image once an epoch, in an order that depends on the seed and the epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for one epoch: the order is known from (seed, epoch) alone, so a resumed run finds it again.

    SeedSequence mixes the two numbers: seed 0, epoch 1 and seed 1, epoch 0 must not share a stream, as they would with
    seed + epoch. torch's CPU generator reads 32 bits of its seed, so 32 well mixed bits are what it gets.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))


class InstanceSampler:
    """Shuffled passes over the training set.

    Args:
        labels: (N,) int64 training labels (only their number matters here).
        seed: the run's seed.
    """

    def __init__(self, labels: Tensor, seed: int) -> None:
        self.labels = labels
        self.seed = seed

    def epoch(self, epoch: int) -> Tensor:
        """(N,) indices of the images of this epoch, in order."""
        return torch.randperm(len(self.labels), generator=epoch_generator(self.seed, epoch))
