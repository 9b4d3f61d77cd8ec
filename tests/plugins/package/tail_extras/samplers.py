"""Repeat-factor sampling.

[0] Gupta, Dollar, Girshick. LVIS: A Dataset for Large Vocabulary Instance Segmentation. CVPR 2019. Appendix B.

    r_c = max(1, sqrt(t / f_c)),   f_c: the share of class c among the images

Differs from [0] in: an epoch keeps its number of images, drawn with replacement in proportion to r_c f_c.
"""

from __future__ import annotations

from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator
from imbalance_vlm.components.ranges import Part


class RepeatFactorSampler(Sampler):
    """Draws classes whose share of the images is below a threshold more often than they occur.

    Args:
        labels: (N,) int64 training labels.
        seed: the seed of the run.
        threshold: t; the share from which on a class is drawn as often as it occurs.
    """

    def __init__(self, labels: Tensor, seed: int, *, threshold: Part = 0.2) -> None:
        super().__init__(labels, seed)
        self.threshold = threshold

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        shares = self.sizes.double() / len(self.labels)  # (K,)
        factors = (self.threshold / shares).sqrt().clamp_min(1)
        return self.draw(factors * shares, epoch_generator(self.seed, epoch))
