"""The base of all losses: values per sample first, reduction afterwards."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from imbalance_vlm.balancing.losses.weighting import ClassWeighting
from imbalance_vlm.errors import InputError, one_of
from imbalance_vlm.long_tail import LongTail

Reduction = Literal["batch", "weights", "none"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


class Loss(nn.Module):
    """A classification loss, called `loss(logits, targets)`.

    A subclass implements `per_sample(logits (N, C), targets (N,)) -> (N,)`; this class checks the shapes, applies class
    weights and reduces. A loss that changes during training extends `on_epoch`; one that also reads the embeddings
    that the logits are computed from implements `values` in place of `per_sample`.

    Attributes:
        experts: number E of experts whose logits a loss accepts as (N, E, C), in addition to (N, C); 0 for none.

    Args:
        long_tail: class counts; kept as the buffer `counts`, so that they move and are saved with the module.
        reduction: "batch" divides the sum by the number of samples, as the papers do; "weights" by the sum of the
            samples' class weights, as torch's weighted mean does (the same in a loss without class weights);
            "none" returns the (N,) values, weighted.
        weighting: class weights of the subclass; None for a loss without any.
    """

    experts = 0
    counts: Tensor

    def __init__(
        self, long_tail: LongTail, *, reduction: Reduction = "batch", weighting: ClassWeighting | None = None
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise InputError(f"`reduction` must be {one_of(REDUCTIONS)}, got {reduction!r}")
        self.reduction = reduction
        self.weighting = weighting
        self.register_buffer("counts", torch.as_tensor(long_tail.counts))  # (C,) int64: exact in any model dtype

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0 of `epochs`; also before the first epoch of a resumed run.

        The training loop calls it. A loop of your own must call it too, or deferred weights never take effect. Its
        effect must depend on its arguments only, so that a resumed run reaches the same state.
        """
        if self.weighting is not None:
            self.weighting.on_epoch(epoch, epochs)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N,) values before class weights."""
        raise NotImplementedError

    def values(self, logits: Tensor, targets: Tensor, embeddings: Tensor | None) -> Tensor:
        """(N,) values before class weights, of logits (N, C), targets (N,) and embeddings (N, d).

        The training loop always passes the embeddings; a loss on logits alone ignores them.
        """
        del embeddings
        return self.per_sample(logits, targets)

    def forward(self, logits: Tensor, targets: Tensor | ArrayLike, embeddings: Tensor | None = None) -> Tensor:
        """The reduced loss of logits (N, C) and class indices (N,), with the embeddings (N, d) if the loss reads any.

        Raises:
            InputError: shapes that do not fit, targets that are not class indices or, on the CPU, lie outside [0, C).
                (On a GPU the last check would force a device sync at every step; datasets check their labels once.)
        """
        targets = self._checked(logits, targets)
        values = self.values(logits, targets, embeddings)  # (N,)
        weights = None
        if self.weighting is not None:
            weights = self.weighting(exact(self.counts, logits)).to(logits.dtype)[targets]  # (N,)
            values = weights * values
        if self.reduction == "none":
            return values
        if self.reduction == "weights" and weights is not None:
            return values.sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        return values.mean()

    def _checked(self, logits: Tensor, targets: Tensor | ArrayLike) -> Tensor:
        """The targets as (N,) int64, after checking both."""
        check_logits(logits)
        num_classes = len(self.counts)
        allowed = [(num_classes,), (self.experts, num_classes)] if self.experts else [(num_classes,)]
        if tuple(logits.shape[1:]) not in allowed:
            shapes = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in reversed(allowed))
            raise InputError(f"`logits` must be {shapes}, got {tuple(logits.shape)}")
        targets = class_indices(targets, logits)
        if len(targets) == 0:
            raise InputError("`targets` must hold at least one sample, got an empty batch")
        return targets


def check_logits(logits: Tensor) -> None:
    """Refuse logits that are no tensor of floating-point numbers."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"`logits` must be a tensor of floating-point numbers, got {got}")


def class_indices(targets: Tensor | ArrayLike, logits: Tensor) -> Tensor:
    """Targets as (N,) int64 on the device of the logits (N, ..., C).

    Whole numbers of any type are accepted, and so are lists and arrays.

    Raises:
        InputError: not one whole number per row of the logits, a tensor on another device or, on the CPU, an index
            outside [0, C). (On a GPU that check would stall every step; datasets check their labels once.)
    """
    if isinstance(targets, Tensor):
        if targets.device != logits.device:
            raise InputError(
                f"`targets` must be on the device of the logits, {logits.device}, got them on {targets.device}; move "
                "them with targets.to(logits.device)"
            )
    else:
        try:
            array = np.asarray(targets)
            targets = torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array).to(logits.device)
        except (TypeError, ValueError) as error:  # text, objects, lists of different lengths
            raise InputError(f"`targets` must be {len(logits)} class indices, got {str(targets)[:100]}") from error
    is_whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.shape != logits.shape[:1] or not is_whole:
        raise InputError(
            f"`targets` must be ({len(logits)},) class indices, one whole number for each row of the logits, got "
            f"shape {tuple(targets.shape)} of type {targets.dtype}"
        )
    on_cpu = targets.device.type == "cpu" and len(targets) > 0
    if on_cpu and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[-1]:
        raise InputError(
            f"`targets` must lie in 0..{logits.shape[-1] - 1}, got {int(targets.min())}..{int(targets.max())}"
        )
    return targets.long()


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Per-sample cross-entropy with the target `(1 - s) onehot + s / K` over the K classes whose logit is not -inf.

    A logit of -inf (of a class that a prior-based loss leaves out) gets no share of the smoothing. If all logits are
    finite, this is torch.nn.functional.cross_entropy(..., label_smoothing=s).

    Shapes: logits (N, C), targets (N,) -> (N,).
    """
    log_probs = logits.log_softmax(dim=1)  # (N, C)
    hit = log_probs.gather(1, targets[:, None]).squeeze(1)  # (N,)
    if label_smoothing == 0.0:
        return -hit
    finite = ~torch.isneginf(logits)
    spread = torch.where(finite, log_probs, 0.0).sum(1) / finite.sum(1)  # (N,)
    return -(1.0 - label_smoothing) * hit - label_smoothing * spread


def scale_of_head(explicit: float | None, offered: float | None) -> float:
    """The factor between cosines and logits, for losses on cosines: `explicit` if set, otherwise that of the head.

    Raises:
        InputError: neither is known.
    """
    scale = offered if explicit is None else explicit
    if scale is None:
        raise InputError(
            "`head_scale` must be the factor by which the head multiplies its cosines (1 for raw cosines), got none; "
            "this loss works on cosines and cannot guess it"
        )
    return scale


def exact(counts: Tensor, like: Tensor) -> Tensor:
    """Integer counts in the dtype of `like`, but at least in float32, which is exact up to 2^24."""
    return counts.to(torch.promote_types(like.dtype, torch.float32))


def log_prior(counts: Tensor, like: Tensor) -> Tensor:
    """(C,) log of the class shares in the dtype of `like`; -inf for a class without images.

    Computed from the integer counts in at least float32 at each call: a C-vector is cheap next to (N, C) logits, and a
    module that is cast to bfloat16 and back keeps its precision.
    """
    numbers = exact(counts, like)
    return (numbers / numbers.sum()).log().to(like.dtype)


def shift(bias: Tensor, tau: float) -> Tensor:
    """tau * bias, where -inf stays -inf even at tau 0: a class without images is left out for any tau."""
    return torch.where(torch.isneginf(bias), bias, tau * bias)
