"""Progressively balanced sampling: from instance-balanced to class-balanced.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020.

    class c is drawn with probability (1 - t) n_c / N + t / K, with replacement,   t = epoch / (epochs - 1)

Differs from [0] in: t runs from 0 in the first epoch to 1 in the last, where [0] divides by the number of epochs; a
training of one epoch is instance-balanced.
"""

from __future__ import annotations

from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator


def progressive_shares(sizes: Tensor, epoch: int, epochs: int) -> Tensor:
    """(K,) float64 shares of the classes in this epoch; all of `sizes` (K,) are positive."""
    t = epoch / max(epochs - 1, 1)
    return (1.0 - t) * sizes.double() / sizes.sum() + t / len(sizes)


class ProgressiveSampler(Sampler):
    """Each draw takes a class with a probability that changes from n_c / N to 1 / K, and one of its images uniformly.

    Args:
        labels: (N,) int64 training labels.
        seed: the run's seed.
    """

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return self.draw(progressive_shares(self.sizes, epoch, epochs), epoch_generator(self.seed, epoch))
