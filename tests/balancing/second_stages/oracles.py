"""The second stages in plain loops from their equations: the C logits of one embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Row = Sequence[float]
Rows = Sequence[Row]


def dot(left: Row, right: Row) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def norm(row: Row) -> float:
    return math.sqrt(sum(a * a for a in row))


def linear(f: Row, weight: Rows, bias: Row) -> list[float]:
    return [dot(f, w) + b for w, b in zip(weight, bias, strict=True)]


def crt(f: Row, train: Rows, weight: Rows, bias: Row) -> list[float]:
    """W (k f) + b, k such that the entries of the training embeddings have a mean square of 1."""
    squares = [entry * entry for row in train for entry in row]
    k = 1 / math.sqrt(sum(squares) / len(squares))
    return linear([k * entry for entry in f], weight, bias)


def lws(f: Row, weight: Rows, bias: Row, scales: Row) -> list[float]:
    """s_c (w_c . f + b_c)."""
    return [s * z for s, z in zip(scales, linear(f, weight, bias), strict=True)]


def disalign(f: Row, weight: Rows, bias: Row, a: Row, b: Row, v: Row, v_0: float) -> list[float]:
    """(1 + s a_c) z_c + s b_c, s = 1 / (1 + exp(-(v . f + v_0)))."""
    s = 1 / (1 + math.exp(-(dot(v, f) + v_0)))
    return [(1 + s * a[c]) * z + s * b[c] for c, z in enumerate(linear(f, weight, bias))]


def marc(f: Row, weight: Rows, bias: Row, a: Row, b: Row) -> list[float]:
    """a_c z_c + b_c |w_c|."""
    return [a[c] * z + b[c] * norm(weight[c]) for c, z in enumerate(linear(f, weight, bias))]


def tau_norm(f: Row, weight: Rows, tau: float) -> list[float]:
    """w_c . f / |w_c|^tau."""
    return [dot(w, f) / norm(w) ** tau for w in weight]


def best_tau(validation: Rows, labels: Sequence[int], weight: Rows) -> float:
    """The first of 0, .1, .. 2 with the highest mean of the classes' accuracies."""
    best, highest = -1.0, -1.0
    for step in range(21):
        tau = step / 10
        accuracies = []
        for c in sorted(set(labels)):
            logits = [tau_norm(f, weight, tau) for f, label in zip(validation, labels, strict=True) if label == c]
            accuracies.append(sum(z.index(max(z)) == c for z in logits) / len(logits))
        mean = sum(accuracies) / len(accuracies)
        if mean > highest + 1e-12:
            best, highest = tau, mean
    return best


def ncm(
    f: Row,
    train: Rows,
    labels: Sequence[int],
    num_classes: int,
    metric: str = "cosine",
    centre: bool = True,
    scale: float = 16.0,
) -> list[float]:
    """s cos(x, mu_c), or -s/2 |x - mu_c|^2, of x = (f - m) / |f - m|."""
    width = len(f)
    m = [sum(row[i] for row in train) / len(train) if centre else 0.0 for i in range(width)]

    def unit(row: Row) -> list[float]:
        moved = [row[i] - m[i] for i in range(width)]
        return [entry / norm(moved) for entry in moved]

    logits = []
    for c in range(num_classes):
        members = [unit(row) for row, label in zip(train, labels, strict=True) if label == c]
        if not members:
            logits.append(-math.inf)
            continue
        mu = [sum(row[i] for row in members) / len(members) for i in range(width)]
        x = unit(f)
        if metric == "cosine":
            logits.append(scale * dot(x, mu) / norm(mu))
        else:
            logits.append(-scale / 2 * sum((x[i] - mu[i]) ** 2 for i in range(width)))
    return logits


def mean_loss(logits: Rows, targets: Sequence[int], counts: Sequence[int], rho: float) -> float:
    """sum_i w_i (-log softmax(z_i)_{y_i}) / sum_i w_i with w_i = n_{y_i}^-rho; rho 0 is the mean cross-entropy."""
    total = weights = 0.0
    for z, y in zip(logits, targets, strict=True):
        weight = counts[y] ** -rho
        top = max(z)
        total += weight * (top + math.log(sum(math.exp(entry - top) for entry in z)) - z[y])
        weights += weight
    return total / weights


def slope(function: Callable[[list[float]], float], at: Row, step: float = 1e-5) -> list[float]:
    """Central differences of a function of a row, one entry after the other."""
    differences = []
    for i in range(len(at)):
        up, down = list(at), list(at)
        up[i] += step
        down[i] -= step
        differences.append((function(up) - function(down)) / (2 * step))
    return differences
