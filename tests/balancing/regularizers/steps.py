"""A small training step for regularizers on text features, and loops to compare them with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import StepOutputs

CLASSES, DIM = 5, 7

LABELS = (0, 0, 0, 2, 3, 0, 2, 4)  # class 1 is not in the batch

Rows = Sequence[Sequence[float]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(
    text: Tensor | None = None,
    frozen: Tensor | None = None,
    embeddings: Tensor | None = None,
    labels: Sequence[int] = LABELS,
) -> StepOutputs:
    rows = drawn(len(labels), DIM) if embeddings is None else embeddings
    return StepOutputs(rows, torch.tensor(labels), torch.zeros(len(labels), CLASSES), text, frozen)


def words(classes: int = CLASSES, width: int = DIM, seed: int = 1) -> Tensor:
    return F.normalize(drawn(classes, width, seed=seed), dim=1)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def unit(a: Sequence[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in a))
    return [x / norm for x in a]


def log_softmax(row: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(z - max(row)) for z in row)) + max(row)
    return [z - total for z in row]
