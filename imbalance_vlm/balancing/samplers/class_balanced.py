"""Class-balanced sampling: all classes equally often.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Equation 1 with q = 0.

    an image of class c is drawn with probability proportional to 1 / n_c, with replacement
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator


class ClassBalancedSampler(Sampler):
    """Each draw takes a class uniformly, and one of its images uniformly.

    Args:
        labels: (N,) int64 training labels.
        seed: the run's seed.
    """

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        shares = torch.ones(len(self.sizes), dtype=torch.float64)
        return self.draw(shares, epoch_generator(self.seed, epoch))
