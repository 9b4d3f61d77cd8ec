"""Class-aware sampling: the classes in turn, a few images of each.

[0] Shen, Lin, Huang. Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks. ECCV 2016.
[1] github.com/facebookresearch/classifier-balancing, data/ClassAwareSampler.py (k 4)

    for each pass: for each class, in a new order: the next k images of the class's own shuffled list,
    which is reshuffled when it runs out

Differs from [1] in: an epoch has as many images as the training set, which is where the training loop of [1] leaves
its longer sampler; the lists are reshuffled in each epoch, so that an epoch is a function of (seed, epoch).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator
from imbalance_vlm.components.ranges import Count


class ClassAwareSampler(Sampler):
    """Every class equally often, to within one turn; no image of a class is repeated before all of them were drawn.

    Args:
        labels: (N,) int64 training labels.
        seed: the run's seed.
        k: images per class and turn.
    """

    def __init__(self, labels: Tensor, seed: int, *, k: Count = 4) -> None:
        super().__init__(labels, seed)
        self.k = k

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        generator = epoch_generator(self.seed, epoch)
        classes, size = len(self.sizes), len(self.labels)
        passes = math.ceil(size / (self.k * classes))
        lists = torch.stack(
            [
                self.rows[start + shuffled_passes(count, passes * self.k, generator)]
                for start, count in zip(self.starts.tolist(), self.sizes.tolist(), strict=True)
            ]
        ).view(classes, passes, self.k)
        order = torch.rand(passes, classes, generator=generator).argsort(1)  # (passes, K): each row a permutation
        turns = lists[order, torch.arange(passes)[:, None]]  # (passes, K, k)
        return turns.flatten()[:size]


def shuffled_passes(size: int, length: int, generator: torch.Generator) -> Tensor:
    """(length,) numbers below `size`, in consecutive shuffled passes."""
    rounds = math.ceil(length / size)
    return torch.rand(rounds, size, generator=generator).argsort(1).flatten()[:length]
