"""Logits of a long-tailed problem, and the post-hoc corrections in plain loops from their equations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.post_hoc.base import PostHoc

COUNTS = (500, 257, 60, 19, 3)
TAIL = LongTail(COUNTS)
C = len(COUNTS)


def tailed(rows: int = 200, signal: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of a model that favours the head, and labels (N,) of a balanced validation set; float64."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % C
    logits = rng.normal(0, 1, (rows, C)) + np.log(np.array(COUNTS) / sum(COUNTS))
    logits[np.arange(rows), labels] += signal
    return torch.from_numpy(logits), torch.from_numpy(labels)


class Untouched(PostHoc):
    """Changes nothing: every comparison with an oracle must reject it."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [power / sum(powers) for power in powers]


def oracle_logit_adjustment(rows: list[list[float]], tau: float) -> list[list[float]]:
    """p_c / pi_c^tau, scaled to sum to 1."""
    corrected = []
    for row in rows:
        scores = [p / (n / sum(COUNTS)) ** tau for p, n in zip(softmax(row), COUNTS, strict=True)]
        corrected.append([score / sum(scores) for score in scores])
    return corrected


def oracle_prior_shift(
    rows: list[list[float]], target: list[float], source: list[float], strength: float = 1.0
) -> list[list[float]]:
    """p_c (target_c / source_c)^strength, scaled to sum to 1."""
    corrected = []
    for row in rows:
        scores = [p * (t / s) ** strength for p, t, s in zip(softmax(row), target, source, strict=True)]
        corrected.append([score / sum(scores) for score in scores])
    return corrected


def oracle_temperature(rows: list[list[float]], temperature: dict[int, float] | float) -> list[list[float]]:
    """softmax of z / T, with the T of the predicted class where there are several."""
    corrected = []
    for row in rows:
        predicted = row.index(max(row))
        t = temperature[predicted] if isinstance(temperature, dict) else temperature
        corrected.append(softmax([z / t for z in row]))
    return corrected


TRAIN = [n / sum(COUNTS) for n in COUNTS]
UNIFORM = [1 / C] * C
INVERSE = [1 / n for n in COUNTS]
LIST = [5.0, 1.0, 1.0, 2.0, 1.0]
