"""Small datasets, heads and features for tests of evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.encoders.sources import FeatureSource, Source
from imbalance_vlm.evaluation.base import Evaluator, ViewName
from imbalance_vlm.evaluation.metrics import Predictions
from imbalance_vlm.heads.text import TextHead

BASE, NOVEL, WIDTH = 3, 2, 6


def directions(classes: int, seed: int) -> Tensor:
    """(C, d) random unit rows."""
    return F.normalize(torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def text_features(names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
    """(M, d) unit rows that depend on the names and templates."""
    return directions(len(names), seed=len("".join(names)) + 100 * len("".join(templates)))


def zero_shot() -> TextHead:
    return TextHead(directions(BASE, 0), 20.0)


def source(classes: int, count: int, seed: int) -> FeatureSource:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, WIDTH)).astype(np.float32)
    return FeatureSource([features], rng.integers(0, classes, count), torch.device("cpu"))


class Features:
    """Random features of a dataset's splits; `read` lists what was asked for."""

    device = torch.device("cpu")

    def __init__(self, classes: int, seed: int, class_names: Sequence[str] = (), templates: Sequence[str] = ("{}",)):
        names = tuple(class_names) or tuple(f"class {label}" for label in range(classes))
        images = ArrayImages(np.zeros((1, 1, 1, 3), np.uint8), "scene")
        self.data = Dataset("scene", names, {"test": Split(images, [0])}, test_only=True, templates=tuple(templates))
        self.sources = {split: source(classes, 40 + 7 * row, seed + row) for row, split in enumerate(("train", "test"))}
        self.read: list[tuple[str, ViewName]] = []

    def of(self, split: str, view: ViewName = "plain") -> Source:
        self.read.append((split, view))
        return self.sources[split]


class LogitSource:
    """A source whose features are the logits."""

    num_views = 1

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.logits, self.labels = logits, labels

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return f"{row}.png"

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.logits[chosen], self.labels[chosen]) for chosen in rows)


def predictions(
    labels: Sequence[int], predicted: Sequence[int], confidence: Any = None, nll: Any = None
) -> Predictions:
    size = len(labels)
    return Predictions(
        np.asarray(labels, np.int64),
        np.asarray(predicted, np.int64),
        np.full(size, 0.5) if confidence is None else np.asarray(confidence),
        np.zeros(size) if nll is None else np.asarray(nll),
    )


def logits_for(predictions: Predictions, num_classes: int) -> Tensor:
    """(N, C) logits whose softmax has the given predicted class and confidence."""
    rest = (1 - predictions.confidence) / (num_classes - 1)
    probs = np.repeat(rest[:, None], num_classes, axis=1)
    probs[np.arange(len(probs)), predictions.predicted] = predictions.confidence
    return torch.from_numpy(np.log(probs))


def scores_of(evaluator: Evaluator, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The evaluator's scores when it receives everything in one batch."""
    evaluator.update(logits, targets)
    return dict(evaluator.compute())


def constant(value: Any) -> Callable[[Mapping[str, Any]], Any]:
    """An offer of a run that is the same for every section."""
    return lambda _section: value
