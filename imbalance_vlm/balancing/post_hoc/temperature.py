"""Temperature scaling: calibrated confidences, with unchanged predictions.

[0] Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017. Section 4.2.
[1] github.com/gpleiss/temperature_scaling, temperature_scaling.py

    p = softmax(z / T),   T minimises mean_i -log p_i(y_i) over the validation set

The mean is convex in b = 1 / T with the slope mean_i (sum_c p_ic z_ic - z_iy), whose sign tells on which side of T the
minimum lies. It is found by bisection on log T, in steps of a thousandth.

By group: a long-tailed model is overconfident on head classes and underconfident on tail classes. Each of many, medium
and few has a T, and a row uses that of its predicted class. A row is divided by a single number, so that no prediction
changes.

Differs from [1] in: bisection instead of L-BFGS, whose fixed step length of .01 can end far from the minimum or at a
negative T; T stays in exp(-3) .. exp(3), about .05 .. 20, even if all validation images are classified correctly and
the best T would be 0; the row's maximum is subtracted before the division (which does not change the softmax), so that
rounding cannot make the two best classes equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.components.ranges import Positive
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import GROUPS, LongTail

STEPS = 1000
"""Steps of log T in one unit: T is found to a tenth of a percent."""

LIMIT = 3 * STEPS
"""The search goes from exp(-3) to exp(3)."""

BLOCK = 2**18
"""Numbers in a block of rows: 1 MB in float32, which fits the cache; it takes twice the time without blocks."""


def scaled(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """(z - max z) / T, (N, C) -> (N, C), with T a number or (N, 1); its argmax is that of z to the last bit."""
    return (logits - logits.amax(1, keepdim=True)) / temperature


def nll_slope(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """d/db of the summed -log softmax(b z)_y at b = 1 / T, for (N, C), (N,), block by block.

    In at least float32; the sum over the rows is in float64.

    A row whose true class has the logit -inf does not depend on T and is skipped.
    """
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    rows = max(1, BLOCK // logits.shape[1])
    for block, targets in zip(logits.split(rows), labels.split(rows), strict=True):
        z = block.to(torch.promote_types(block.dtype, torch.float32))
        margins = z - z.gather(1, targets[:, None])  # (R, C) relative to the true class
        probs = (margins / temperature).softmax(1)
        expected = torch.where(probs > 0, probs * margins, 0.0).sum(1)  # (R,); 0 where the probabilities are NaN
        total += expected.sum(dtype=torch.float64)
    return float(total)


def best_steps(logits: Tensor, labels: Tensor) -> int:
    """log T of the smallest mean NLL, in steps; 0 if all T are equally good."""
    slope = nll_slope(logits, labels, 1.0)
    if slope == 0.0:
        return 0
    # The slope falls as T grows, and the minimum is where it turns negative. It is 0 once all rows are correct with
    # probabilities that round to 1, where a lower T changes nothing.
    low, high = (0, LIMIT) if slope > 0 else (-LIMIT - 1, 0)
    while high - low > 1:
        middle = (low + high) // 2
        if nll_slope(logits, labels, math.exp(middle / STEPS)) >= 0:
            low = middle
        else:
            high = middle
    return high


class Temperature(PostHoc):
    """Divides the logits by a temperature, one for all classes or one per group of predicted classes.

    Accuracies do not change; NLL and calibration error do. The corrected logits have the maximum 0.

    Args:
        long_tail: the training groups.
        per_group: whether many, medium and few have a temperature each; a group that is never predicted on the
            validation set uses the temperature of all images.
        T: the temperature, > 0; null fits it on the validation set; it is 1 before `fit`.

    Raises:
        InputError: both a fixed T and one per group.
    """

    group: Tensor
    steps: Tensor

    def __init__(self, long_tail: LongTail, *, per_group: bool = False, T: Positive | None = None) -> None:  # noqa: N803
        super().__init__(long_tail)
        if per_group and T is not None:
            raise InputError(
                f"`per_group` fits one temperature per group, got a fixed T of {T} too; leave out one of them"
            )
        self.per_group = per_group
        self.T = T
        group = torch.zeros(long_tail.num_classes, dtype=torch.int64)
        for number, name in enumerate(GROUPS):
            group[torch.as_tensor(long_tail.groups[name])] = number
        self.register_buffer("group", group)  # (C,) index into GROUPS
        self.register_buffer("steps", torch.zeros(len(GROUPS), dtype=torch.int64))  # log T: exact in any dtype

    @property
    def needs_validation(self) -> bool:
        return self.T is None

    @torch.no_grad()
    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        if self.T is not None:
            return {}
        if logits is None or labels is None:
            raise InputError(
                "`T` must be a number where the dataset has no validation set to fit it on, got null; set T, or give "
                "the dataset a validation split"
            )
        overall = best_steps(logits, labels)
        self.steps.fill_(overall)
        if not self.per_group:
            return {"temperature": math.exp(overall / STEPS)}
        assigned = self.group[logits.argmax(1)]  # (N,)
        chosen: dict[str, float] = {}
        for number, name in enumerate(GROUPS):
            in_group = assigned == number
            if in_group.any():
                self.steps[number] = best_steps(logits[in_group], labels[in_group])
            if len(self.long_tail.groups[name]):
                chosen[f"temperature_{name}"] = math.exp(int(self.steps[number]) / STEPS)
        return chosen

    def forward(self, logits: Tensor) -> Tensor:
        if self.T is not None:
            return scaled(logits, self.T)
        wide = torch.promote_types(logits.dtype, torch.float32)
        temperatures = (self.steps.to(wide) / STEPS).exp()  # (3,)
        return scaled(logits, temperatures[self.group[logits.argmax(1)], None].to(logits.dtype))
