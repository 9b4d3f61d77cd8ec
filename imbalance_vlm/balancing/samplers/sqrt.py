"""Square-root sampling: between instance-balanced and class-balanced.

[0] Mahajan, Girshick, Ramanathan, He, Paluri, Li, Bharambe, van der Maaten. Exploring the Limits of Weakly Supervised
    Pretraining. ECCV 2018.
[1] Kang et al. Decoupling Representation and Classifier for Long-Tailed Recognition. ICLR 2020. Equation 1, q = 1/2.

    a class is drawn with probability proportional to sqrt(n_c), with replacement
"""

from __future__ import annotations

from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator


class SqrtSampler(Sampler):
    """Each draw takes a class in proportion to the square root of its size, and one of its images uniformly.

    Args:
        labels: (N,) int64 training labels.
        seed: the run's seed.
    """

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return self.draw(self.sizes.double().sqrt(), epoch_generator(self.seed, epoch))
