"""Instance-balanced sampling: every image once per epoch, in an order that depends on the seed and the epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator


class InstanceSampler(Sampler):
    """Shuffled passes over the training set.

    Args:
        labels: (N,) int64 training labels (only their number matters here).
        seed: the run's seed.
    """

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return torch.randperm(len(self.labels), generator=epoch_generator(self.seed, epoch))
