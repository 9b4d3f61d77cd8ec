"""Prior shift: predictions under another class prior than the one that the logits contain.

[0] Saerens, Latinne, Decaestecker. Adjusting the Outputs of a Classifier to New a Priori Probabilities: A Simple
    Procedure. Neural Computation 2002. Equations 2.4 (the shift) and 2.9 (the estimate).
[1] Hong, Han, Choi, Seo, Kim, Chang. Disentangling Label Distribution for Long-tailed Visual Recognition. CVPR 2021.
    (the shift on logits of balanced losses, whose source prior is uniform)

    z'_c = z_c + strength * (log target_c - log source_c)

An unknown target is estimated from unlabelled predictions p_i, by expectation-maximisation from q = source:

    p_i(c | q) = (q_c / source_c) p_ic / sum_j (q_j / source_j) p_ij,   q_c <- mean_i p_i(c | q)

Differs from [0] in: a strength; a class without training images is never predicted, whatever the target, since its
logits contain nothing that a prior could scale.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import exact
from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.balancing.post_hoc.logit_adjustment import TENTHS
from imbalance_vlm.balancing.selection import best, class_mean_accuracy
from imbalance_vlm.components.ranges import Count, NonNegative
from imbalance_vlm.errors import InputError, one_of
from imbalance_vlm.long_tail import LongTail

Target = Literal["uniform", "train", "inverse", "estimate"]
Source = Literal["train", "uniform"]


def shifted(logits: Tensor, target: Tensor, source: Tensor, strength: Tensor | float) -> Tensor:
    """z + strength (log target - log source), (N, C), (C,), (C,) -> (N, C); -inf where the source prior is 0.

    The priors are in at least float32 and positive wherever `source` is.
    """
    present = source > 0  # (C,)
    ratio = torch.where(present, target, 1.0).log() - torch.where(present, source, 1.0).log()
    return logits + torch.where(present, strength * ratio, -math.inf).to(logits.dtype)


def estimate_prior(log_probs: Tensor, source_prior: Tensor, iterations: int = 100) -> Tensor:
    """(C,) class prior of the images with these predictions, without their labels.

    The probabilities must be calibrated under the source prior, since their errors affect the estimate.

    Args:
        log_probs: (N, C) log probabilities under the source prior.
        source_prior: (C,) the prior that they contain; a class with prior 0 keeps it.
        iterations: steps of expectation-maximisation; each costs two products of (N, C) with a vector.

    Raises:
        InputError: no rows to estimate from.
    """
    if len(log_probs) == 0:
        raise InputError("`log_probs` must hold at least one row to estimate a prior from, got none")
    probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)).exp()  # (N, C)
    source = source_prior.to(probs.dtype)
    present = source > 0
    prior = source
    for _ in range(iterations):
        ratio = torch.where(present, prior / torch.where(present, source, 1.0), 0.0)  # (C,)
        evidence = (probs @ ratio).clamp_min(torch.finfo(probs.dtype).tiny)  # (N,)
        prior = ratio * (evidence.reciprocal() @ probs) / len(probs)
    return prior / prior.sum()


class PriorShift(PostHoc):
    """Shifts the logits from the class prior that they contain to the one that the test images are expected to have.

    Args:
        long_tail: the training counts; a class without images is never predicted (its logit becomes -inf), and the
            named priors are over the other classes.
        target: the prior to predict under: "uniform"; "train", the training shares; "inverse", shares in proportion to
            1 / n; "estimate", estimated from the validation logits without their labels; or a list of C positive
            numbers, one per class, which are scaled to sum to 1.
        source: the prior that the logits contain: "train" after cross-entropy, "uniform" after a balanced loss.
        strength: strength of the shift, >= 0; 1 is Bayes' rule. null chooses among 0, .1, .. 2 by the class-mean
            accuracy on the validation set (the smallest if several are best); it is 1 before `fit`.
        iterations: steps of the estimate; other targets ignore it.

    Raises:
        InputError: a target that is neither one of the names nor C positive numbers.
    """

    counts: Tensor
    tenths: Tensor
    given: Tensor

    def __init__(
        self,
        long_tail: LongTail,
        *,
        target: Target | list[float] = "uniform",
        source: Source = "train",
        strength: NonNegative | None = 1.0,
        iterations: Count = 100,
    ) -> None:
        super().__init__(long_tail)
        self.target = target
        self.source = source
        self.strength = strength
        self.iterations = iterations
        self.register_buffer("counts", torch.as_tensor(long_tail.counts))  # (C,) int64: exact in any dtype
        self.register_buffer("tenths", torch.tensor(10))  # () int64: the chosen strength
        if not isinstance(target, str):
            self.register_buffer("given", _shares(target, long_tail))  # (C,) float64
        elif target == "estimate":
            self.register_buffer("given", self._prior(self.source, self.counts.double()))
        elif target not in get_args(Target):
            raise InputError(f"`target` must be {one_of(get_args(Target))}, or a list of numbers, got {target!r}")

    @property
    def needs_validation(self) -> bool:
        return self.target == "estimate" or self.strength is None

    @torch.no_grad()
    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        """Estimate the target and choose the strength, if the settings leave them open.

        The estimate uses no labels: to estimate the prior of the test images, pass their logits, and None as labels.

        Returns:
            The strength if it was chosen; the lowest and the highest share of the target if it was estimated.
        """
        if not self.needs_validation:
            return {}
        if logits is None or (labels is None and self.strength is None):
            setting = "`strength` must be a number" if self.strength is None else "`target` must be named or listed"
            got = "null" if self.strength is None else "'estimate'"
            raise InputError(
                f"{setting} where the dataset has no validation set to choose it on, got {got}; set it, or give the "
                "dataset a validation split"
            )
        chosen: dict[str, float] = {}
        counts = exact(self.counts, logits)
        if self.target == "estimate":
            source = self._prior(self.source, counts)
            mask = torch.where(counts > 0, 0.0, -math.inf).to(logits.dtype)  # (C,)
            estimated = estimate_prior((logits + mask).to(counts.dtype).log_softmax(1), source, self.iterations)
            self.given.copy_(estimated)
            shares = estimated[counts > 0]
            chosen |= {"target_lowest": float(shares.min()), "target_highest": float(shares.max())}
        if self.strength is None and labels is not None:
            priors = self._priors(logits)
            tenths = int(best(TENTHS, lambda k: class_mean_accuracy(shifted(logits, *priors, k / 10), labels)))
            self.tenths.fill_(tenths)
            chosen["strength"] = tenths / 10
        return chosen

    def forward(self, logits: Tensor) -> Tensor:
        target, source = self._priors(logits)
        strength = self.tenths.to(target.dtype) / 10 if self.strength is None else self.strength
        return shifted(logits, target, source, strength)

    def _priors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Target and source, (C,) each, in at least float32; positive only for classes with images."""
        counts = exact(self.counts, like)
        source = self._prior(self.source, counts)
        if isinstance(self.target, str) and self.target != "estimate":
            return self._prior(self.target, counts), source
        target = self.given.to(counts.dtype).clamp_min(torch.finfo(counts.dtype).tiny)  # an estimate may reach 0
        return target, source

    def _prior(self, name: Literal["uniform", "train", "inverse"], counts: Tensor) -> Tensor:
        """(C,) shares from floating-point `counts` (C,)."""
        present = counts > 0
        if name == "uniform":
            shares = present.to(counts.dtype)
        else:
            shares = counts if name == "train" else torch.where(present, 1.0 / counts, 0.0)
        return shares / shares.sum()


def _shares(target: list[float], long_tail: LongTail) -> Tensor:
    """(C,) the user's numbers, scaled to sum to 1, float64."""
    expected = f"`target` must hold {long_tail.num_classes} positive numbers, one per class"
    if len(target) != long_tail.num_classes:
        raise InputError(f"{expected}, got {len(target)}")
    for label, number in enumerate(target):
        if not 0 < number < math.inf:
            raise InputError(
                f"{expected}, got {number} for class {label} ({long_tail.name_of(label)!r}); "
                "give a class that never occurs a very small number"
            )
    shares = torch.tensor(target, dtype=torch.float64)
    return shares / shares.sum()
