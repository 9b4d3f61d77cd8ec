"""The losses once more, in plain loops from their equations: slow, and without a line in common with the package.

Each oracle is `oracle(logits, target, counts, **settings) -> float` for one sample; CASES says on what it is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Oracle = Callable[..., float]


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / sum(powers) for power in powers]


def minus_log_softmax(logits: Sequence[float], target: int) -> float:
    top = max(logits)
    return top + math.log(sum(math.exp(z - top) for z in logits)) - logits[target]


def cross_entropy(logits: Sequence[float], target: int, counts: Sequence[int], label_smoothing: float = 0.0) -> float:
    """sum_c q_c (-log p_c) with q = (1 - s) onehot + s / C."""
    total = 0.0
    for c in range(len(logits)):
        share = label_smoothing / len(logits) + (1.0 - label_smoothing if c == target else 0.0)
        total += share * minus_log_softmax(logits, c)
    return total


def focal(logits: Sequence[float], target: int, counts: Sequence[int], gamma: float = 2.0) -> float:
    """(1 - p_y)^gamma (-log p_y)."""
    return (1.0 - softmax(logits)[target]) ** gamma * minus_log_softmax(logits, target)


def balanced_softmax(
    logits: Sequence[float], target: int, counts: Sequence[int], label_smoothing: float = 0.0
) -> float:
    """Cross-entropy of z + log n."""
    shifted = [z + math.log(n) for z, n in zip(logits, counts, strict=True)]
    return cross_entropy(shifted, target, counts, label_smoothing)


def logit_adjustment(
    logits: Sequence[float], target: int, counts: Sequence[int], tau: float = 1.0, label_smoothing: float = 0.0
) -> float:
    """Cross-entropy of z + tau log pi."""
    shifted = [z + tau * math.log(n / sum(counts)) for z, n in zip(logits, counts, strict=True)]
    return cross_entropy(shifted, target, counts, label_smoothing)


MILD, EXTREME, EQUAL = (120, 45, 20, 7, 3), (1_000_000, 1000, 5, 1, 1), (10, 10, 10, 10, 10)


@dataclass(frozen=True)
class Case:
    """One comparison: a loss with settings and counts against its oracle.

    `stand_in` is a wrong loss (name and settings) that the comparison must reject; None where the two are equal by
    definition, so that there is nothing to tell apart.
    """

    loss: str
    oracle: Oracle
    counts: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    stand_in: tuple[str, dict[str, Any]] | None = ("cross_entropy", {})

    def __str__(self) -> str:
        settings = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.loss}({settings}) on {'-'.join(map(str, self.counts))}"


CASES = [
    Case("cross_entropy", cross_entropy, MILD, stand_in=("balanced_softmax", {})),
    Case("cross_entropy", cross_entropy, EXTREME, stand_in=("focal", {})),
    *(Case("cross_entropy", cross_entropy, MILD, {"label_smoothing": s}) for s in (0.01, 0.1, 0.9)),
    *(Case("focal", focal, MILD, {"gamma": gamma}) for gamma in (0.5, 1.0, 2.0, 5.0)),
    Case("focal", focal, EXTREME),
    Case("focal", focal, MILD, {"gamma": 0.0}, stand_in=None),
    *(Case("balanced_softmax", balanced_softmax, counts) for counts in (MILD, EXTREME)),
    Case("balanced_softmax", balanced_softmax, MILD, {"label_smoothing": 0.1}),
    Case("balanced_softmax", balanced_softmax, EQUAL, stand_in=None),
    *(
        Case("logit_adjustment", logit_adjustment, counts, {"tau": tau})
        for tau in (0.25, 1.0, 2.5)
        for counts in (MILD, EXTREME)
    ),
    Case("logit_adjustment", logit_adjustment, MILD, {"tau": 1.5, "label_smoothing": 0.2}),
    Case("logit_adjustment", logit_adjustment, EXTREME, {"tau": 0.0}, stand_in=None),
]
