"""The losses once more, in plain loops from their equations: slow, and without a line in common with the package.

Each oracle is `oracle(logits, target, counts, **settings) -> float` for one sample, or, where the loss of a sample
depends on its batch, `oracle(batch, targets, counts, **settings) -> list[float]`. CASES says on what it is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Oracle = Callable[..., Any]


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


def average_one(weights: Sequence[float]) -> list[float]:
    return [w * len(weights) / sum(weights) for w in weights]


def weighted(logits: Sequence[float], target: int, counts: Sequence[int], rho: float = 1.0) -> float:
    """w_y (-log p_y) with w = pi^-rho, mean 1."""
    weights = average_one([(n / sum(counts)) ** -rho for n in counts])
    return weights[target] * minus_log_softmax(logits, target)


def class_balanced(
    logits: Sequence[float],
    target: int,
    counts: Sequence[int],
    beta: float = 0.9999,
    base: str = "cross_entropy",
    gamma: float = 2.0,
) -> float:
    """w_y base with w = 1 / (1 + beta + ... + beta^(n - 1)), rescaled to sum C."""
    effective = [sum(beta**k for k in range(n)) for n in counts]
    weight = average_one([1.0 / number for number in effective])[target]
    return weight * (focal(logits, target, counts, gamma) if base == "focal" else minus_log_softmax(logits, target))


def ldam(
    logits: Sequence[float],
    target: int,
    counts: Sequence[int],
    max_m: float = 0.5,
    s: float = 30.0,
    head_scale: float = 25.0,
    beta: float = 0.0,
) -> float:
    """Cross-entropy of s (cos - m_y onehot) with m = max_m n^(-1/4) / max_j n_j^(-1/4)."""
    cosines = [z / head_scale for z in logits]
    cosines[target] -= max_m * counts[target] ** -0.25 / max(n**-0.25 for n in counts)
    weight = average_one([1.0 / sum(beta**k for k in range(n)) for n in counts])[target] if beta else 1.0
    return weight * minus_log_softmax([s * cosine for cosine in cosines], target)


def vs(logits: Sequence[float], target: int, counts: Sequence[int], gamma: float = 0.3, tau: float = 1.0) -> float:
    """Cross-entropy of z / (n_max / n)^gamma + tau log pi."""
    changed = []
    for z, n in zip(logits, counts, strict=True):
        changed.append(z / (max(counts) / n) ** gamma + tau * math.log(n / sum(counts)))
    return minus_log_softmax(changed, target)


def lade_r(batch: Sequence[Sequence[float]], targets: Sequence[int], counts: Sequence[int], lam: float) -> float:
    """-sum_c pi_c (m_c - s_c - lam s_c^2) of the raw logits."""
    total = 0.0
    for c in range(len(counts)):
        prior = counts[c] / sum(counts)
        of_class = [row[c] for row, y in zip(batch, targets, strict=True) if y == c]
        m = sum(of_class) / len(of_class) if of_class else 0.0
        s = math.log(sum(math.exp(row[c]) / prior / len(counts) for row in batch) / len(batch))
        total -= prior * (m - s - lam * s * s)
    return total


def lade(
    batch: Sequence[Sequence[float]],
    targets: Sequence[int],
    counts: Sequence[int],
    lam: float = 0.1,
    alpha: float = 0.1,
) -> list[float]:
    """Cross-entropy of z + log pi for each sample, and alpha R for the batch."""
    r = lade_r(batch, targets, counts, lam)
    return [balanced_softmax(row, y, counts) + alpha * r for row, y in zip(batch, targets, strict=True)]


def equalization(logits: Sequence[float], target: int, counts: Sequence[int], lam: float = 1.77e-3) -> float:
    """Binary cross-entropy of each class, but for the negatives of the classes with pi < lambda."""
    total = 0.0
    for c, z in enumerate(logits):
        p = 1.0 / (1.0 + math.exp(-z))
        if c == target:
            total -= math.log(p)
        elif counts[c] / sum(counts) >= lam:
            total -= math.log(1.0 - p)
    return total


def seesaw(
    batch: Sequence[Sequence[float]], targets: Sequence[int], counts: Sequence[int], p: float = 0.8, q: float = 2.0
) -> list[float]:
    """-log (e^z_y / (sum_j M_yj S_yj e^z_j + e^z_y)), the labels of the batch being all that was seen."""
    seen = [max(1, sum(1 for y in targets if y == c)) for c in range(len(counts))]
    values = []
    for row, y in zip(batch, targets, strict=True):
        share = softmax(row)
        below = math.exp(row[y])
        for j in range(len(row)):
            if j != y:
                mitigation = min(1.0, seen[j] / seen[y]) ** p
                compensation = max(1.0, share[j] / share[y]) ** q
                below += mitigation * compensation * math.exp(row[j])
        values.append(-math.log(math.exp(row[y]) / below))
    return values


def gaussian_clouded(
    logits: Sequence[float],
    target: int,
    counts: Sequence[int],
    m: float = 0.1,
    s: float = 20.0,
    s_n: float = 0.5,
    head_scale: float = 25.0,
    eps: Sequence[float] | None = None,
) -> float:
    """Cross-entropy of s (cos - s_n |eps| a - m onehot), a = (log n_max - log n) / max_j (log n_max - log n_j)."""
    changed = []
    for c, z in enumerate(logits):
        rarity = (math.log(max(counts)) - math.log(counts[c])) / (math.log(max(counts)) - math.log(min(counts)))
        cloud = s_n * abs(eps[c]) * rarity if eps is not None else 0.0
        changed.append(s * (z / head_scale - cloud - (m if c == target else 0.0)))
    return minus_log_softmax(changed, target)


def paco(
    logits: Sequence[float],
    target: int,
    counts: Sequence[int],
    supt: float = 1.0,
    query: Sequence[float] = (),
    keys: Sequence[tuple[Sequence[float], int]] = (),
    alpha: float = 0.05,
    beta: float = 1.0,
    temperature: float = 0.2,
    label_smoothing: float = 0.0,
    **_: Any,
) -> float:
    """-(sum_c beta q_c log p_c + alpha sum_{j in P} log p_j) / (beta + alpha |P|), p over the classes and the keys.

    `keys` are (embedding, class) of other samples; each has its column and its entry in the mask.
    """
    columns = [(z + math.log(n / sum(counts))) / supt for z, n in zip(logits, counts, strict=True)]
    mask = [beta * label_smoothing / len(counts) for _ in counts]
    mask[target] += beta * (1.0 - label_smoothing)
    for key, label in keys:
        lengths = math.hypot(*query) * math.hypot(*key)
        columns.append(sum(a * b for a, b in zip(query, key, strict=True)) / lengths / temperature)
        mask.append(alpha if label == target else 0.0)
    return sum(weight * minus_log_softmax(columns, j) for j, weight in enumerate(mask)) / sum(mask)


def etf_dot_regression(logits: Sequence[float], target: int, counts: Sequence[int], length: float = 1.0) -> float:
    """(h.m_y - |m_y| |h|)^2 / (2 |h|) with |m_y| = 1."""
    return (logits[target] - length) ** 2 / (2.0 * length)


def rank_reversed(counts: Sequence[int]) -> list[float]:
    """The r-th smallest gets the r-th largest; classes of one size share the mean of what they would get."""
    order = sorted(range(len(counts)), key=lambda c: counts[c])
    gets = dict(zip(order, sorted(counts, reverse=True), strict=True))
    turned = []
    for n in counts:
        equals = [gets[c] for c in range(len(counts)) if counts[c] == n]
        turned.append(sum(equals) / len(equals))
    return turned


def sade_experts(
    logits: Sequence[Sequence[float]], target: int, counts: Sequence[int], tau: float = 2.0
) -> tuple[float, float, float]:
    """CE(z_1), CE(z_2 + log pi) and CE(z_3 + log pi - tau log inv_pi)."""
    turned, total = rank_reversed(counts), sum(counts)
    second = [z + math.log(n / total) for z, n in zip(logits[1], counts, strict=True)]
    third = [
        z + math.log(n / total) - tau * math.log(t / total) for z, n, t in zip(logits[2], counts, turned, strict=True)
    ]
    return tuple(minus_log_softmax(z, target) for z in (logits[0], second, third))  # type: ignore[return-value]


def sade(logits: Sequence[float], target: int, counts: Sequence[int], tau: float = 2.0) -> float:
    """The sum over three experts that share their logits."""
    return sum(sade_experts([logits] * 3, target, counts, tau))


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
    whole_batch: bool = False

    def values(self, batch: Sequence[Sequence[float]], targets: Sequence[int]) -> list[float]:
        """What the oracle says of each sample."""
        if self.whole_batch:
            return list(self.oracle(batch, targets, self.counts, **self.settings))
        return [self.oracle(row, y, self.counts, **self.settings) for row, y in zip(batch, targets, strict=True)]

    def __str__(self) -> str:
        settings = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.loss}({settings}) on {'-'.join(map(str, self.counts))}"


COSINES: dict[str, Any] = {"head_scale": 25.0}
"""What a loss on cosines needs to know of its logits."""

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
    *(Case("weighted", weighted, counts, {"rho": rho}) for rho in (0.5, 1.0, 1.2) for counts in (MILD, EXTREME)),
    Case("weighted", weighted, MILD, {"rho": 0.0}, stand_in=None),
    *(Case("class_balanced", class_balanced, MILD, {"beta": beta}) for beta in (0.9, 0.999, 0.9999)),
    Case("class_balanced", class_balanced, (100_000, 1000, 5, 1, 1)),
    Case("class_balanced", class_balanced, MILD, {"base": "focal", "gamma": 1.5}, stand_in=("focal", {"gamma": 1.5})),
    Case("class_balanced", class_balanced, MILD, {"beta": 0.0}, stand_in=None),
    *(Case("ldam", ldam, counts, {"head_scale": scale}) for scale in (1.0, 25.0) for counts in (MILD, EXTREME)),
    Case("ldam", ldam, MILD, COSINES | {"max_m": 0.2, "s": 10.0}, ("ldam", COSINES | {"max_m": 0.0, "s": 10.0})),
    Case("ldam", ldam, MILD, COSINES | {"beta": 0.99}, stand_in=("ldam", COSINES)),
    *(Case("vs", vs, counts, {"gamma": 0.15, "tau": 1.25}) for counts in (MILD, EXTREME)),
    Case("vs", vs, MILD, stand_in=("logit_adjustment", {})),
    Case("vs", vs, MILD, {"tau": 0.0}),
    *(Case("lade", lade, counts, whole_batch=True) for counts in (MILD, EXTREME, EQUAL)),
    Case("lade", lade, MILD, {"lam": 0.5, "alpha": 0.05}, ("balanced_softmax", {}), whole_batch=True),
    Case("lade", lade, MILD, {"alpha": 2.0}, ("lade", {"lam": 0.0, "alpha": 2.0}), whole_batch=True),
    *(Case("equalization", equalization, counts) for counts in (MILD, EXTREME)),
    Case("equalization", equalization, MILD, {"lam": 0.1}, stand_in=("equalization", {})),
    Case("seesaw", seesaw, MILD, whole_batch=True),
    Case("seesaw", seesaw, MILD, {"q": 0.0}, ("seesaw", {"p": 0.0, "q": 0.0}), whole_batch=True),
    Case("seesaw", seesaw, MILD, {"p": 0.0}, ("seesaw", {"p": 0.0, "q": 0.0}), whole_batch=True),
    *(Case("gaussian_clouded", gaussian_clouded, MILD, COSINES | {"s_n": 0.0, "m": m}) for m in (0.0, 0.1, 0.4)),
    Case("gaussian_clouded", gaussian_clouded, EXTREME, {"s_n": 0.0, "head_scale": 1.0, "s": 30.0}),
    *(
        Case(name, paco, counts, {"supt": supt})  # without embeddings; with them in test_paco.py
        for name in ("paco", "gpaco")
        for supt in (1.0, 2.0)
        for counts in (MILD, EXTREME)
    ),
    Case("gpaco", paco, MILD, {"label_smoothing": 0.1}, stand_in=("paco", {})),
    Case("etf_dot_regression", etf_dot_regression, MILD),
    *(Case("sade", sade, counts) for counts in (MILD, EXTREME, EQUAL)),
    Case("sade", sade, MILD, {"tau": 0.5}, stand_in=("sade", {})),
]
