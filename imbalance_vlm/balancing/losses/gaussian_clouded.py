"""Gaussian clouded logit adjustment (GCL).

[0] Li, Cheung, Lu. Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment. CVPR 2022.
[1] github.com/Keke921/GCLLoss, losses.py (m .5, s 30, cloud 1 by default)
[2] Dong, Zhou, Yan, Zuo. LPT: Long-Tailed Prompt Tuning for Image Classification. ICLR 2023. (m .1, s 20, cloud .5)

    L = -log softmax(s * (cos - s_n a |eps| - m onehot_y))_y
    a_c = (log n_max - log n_c) / max_j (log n_max - log n_j),   eps ~ N(0, (1/3)^2) clamped to [-1, 1], per (i, c)

The rarer the class, the larger the cloud around its logits. Margin and cloud are in units of the cosine: `head_scale`
is the factor by which the head multiplies its cosines, and cos = z / head_scale. 1/3 is the standard deviation, as in
[1]; "N(0, 1/3)" could be read as a variance.

Differs from [1] and [2] in: no clouds outside of training (`loss.eval()`); no focal or asymmetric factor on top; a
class without images is left out of the softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss, Reduction, exact, scale_of_head, smoothed_cross_entropy
from imbalance_vlm.balancing.samplers.base import epoch_generator
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.long_tail import LongTail


def cloud_sizes(counts: Tensor, like: Tensor) -> Tensor:
    """(C,) a_c in [0, 1], 1 for the rarest class; all 0 where counts are equal; inf for a class without images."""
    logs = exact(counts, like).log()
    gaps = logs.max() - logs  # (C,)
    widest = torch.where(counts > 0, gaps, 0.0).max()
    return torch.where(counts > 0, gaps / widest.clamp_min(torch.finfo(gaps.dtype).tiny), torch.inf).to(like.dtype)


def gaussian_clouded(logits: Tensor, targets: Tensor, clouds: Tensor, m: float, s: float, head_scale: float) -> Tensor:
    """Per-sample loss, (N, C), (N,) -> (N,), of head_scale * cos less `clouds` (N, C), inf leaving a class out.

    The clouds are overwritten: on a CPU, allocating a new (N, C) tensor costs more than the arithmetic.
    """
    lowered = clouds.mul_(-s).add_(logits, alpha=s / head_scale)
    lowered.scatter_add_(1, targets[:, None], lowered.new_full((len(targets), 1), -s * m))
    return smoothed_cross_entropy(lowered, targets)


class GaussianClouded(Loss):
    """Cross-entropy on cosines lowered at random, the more the rarer the class, with a margin on the true class.

    The clouds depend on torch's seed when the loss was made, and on the epoch.

    Cost: three to four times cross-entropy's time on a CPU, half of it for drawing the N x C normal numbers of the
    method, which torch draws sequentially. The memory is that of cross-entropy.

    Args:
        long_tail: class counts; a class without images is left out of the softmax.
        m: margin of the true class, in units of the cosine.
        s: scale of the cosines in this loss.
        s_n: size of the rarest class's cloud, in units of the cosine.
        logit_scale: factor by which the head multiplies its cosines.
        head_scale: factor between cosines and logits (1 for raw cosines); null uses that of the head.
    """

    def __init__(
        self,
        long_tail: LongTail,
        logit_scale: float | None = None,
        *,
        m: NonNegative = 0.1,
        s: Positive = 20.0,
        s_n: NonNegative = 0.5,
        head_scale: Positive | None = None,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.m = m
        self.s = s
        self.s_n = s_n
        self.head_scale = scale_of_head(head_scale, logit_scale)
        self.seed = torch.initial_seed()
        self.epoch = 0
        self._generator: torch.Generator | None = None

    def on_epoch(self, epoch: int, epochs: int) -> None:
        super().on_epoch(epoch, epochs)
        self.epoch = epoch
        self._generator = None  # the generator of the epoch starts with the next batch

    def noise(self, like: Tensor) -> Tensor:
        """(N, C) eps of the next batch, on the device and in the dtype of `like`."""
        if self._generator is None or self._generator.device != like.device:
            self._generator = epoch_generator(self.seed, self.epoch, like.device)
        eps = torch.randn(like.shape, generator=self._generator, device=like.device, dtype=like.dtype)
        return eps.div_(3.0).clamp_(-1.0, 1.0)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        sizes = cloud_sizes(self.counts, logits)  # (C,)
        left_out = torch.where(torch.isinf(sizes), sizes, 0.0)
        if self.training:
            finite = torch.where(torch.isinf(sizes), 0.0, self.s_n * sizes)  # (C,): inf * 0 is NaN
            clouds = self.noise(logits).abs_().mul_(finite).add_(left_out)  # (N, C)
        else:
            clouds = left_out.repeat(len(logits), 1)
        return gaussian_clouded(logits, targets, clouds, self.m, self.s, self.head_scale)
