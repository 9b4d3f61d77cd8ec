"""Accuracy on classes that were not trained, which the classifier knows by their names alone.

[0] Zhou, Yang, Loy, Liu. Conditional Prompt Learning for Vision-Language Models. CVPR 2022. (base to novel)
[1] Xian, Schiele, Akata. Zero-Shot Learning: The Good, the Bad and the Ugly. CVPR 2017. (the harmonic mean; both halves
    in one label space)

    H = 2 B N / (B + N)     B, N: accuracy on the test images of base classes among the base classes, and of novel
                            classes among the novel ones

Among the novel classes alone, novel images cannot be confused with base classes, which a model that was trained on
these prefers; `joint` is the accuracy over all test images among all classes.

Accuracies are in percent and over images, all of equal weight. Undefined values are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_vlm.components.ranges import Natural
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Column, Evaluator, SplitFeatures
from imbalance_vlm.evaluation.evaluate import logits_of, predict
from imbalance_vlm.evaluation.metrics import Predictions, accuracy, base_novel_h, mean, per_class_accuracy
from imbalance_vlm.evaluation.recorder import PredictionRecorder
from imbalance_vlm.heads.base import Head

BEST = tuple(map(Column, ("best_epoch", "best_base", "best_novel", "best_h")))
"""Columns of the best epoch, which is chosen on test images: an upper bound, not a result."""


class BaseToNovel(Evaluator):
    """The base-to-novel protocol, and base and novel accuracy over the epochs.

    Args:
        head: classifies by class names, those of the base classes.
        features: of the base classes.
        novel_features: of the novel classes, whose labels count from 0.
        text_features: (M, d) unit text features of names in templates, from the untouched tower.
        history: the lines of the epochs, filled by the time `compute` runs.
        curve: record base and novel accuracy after every `curve`-th and the last epoch in metrics.jsonl; 0 for
            never. With cached features a measurement costs one pass of all class names through the text tower.

    Raises:
        InputError: no novel classes, or a head that cannot read their names.
    """

    columns = (
        *(Column(name, deviation=True) for name in ("base", "novel", "h")),
        *map(Column, ("joint", "joint_base", "joint_novel", "novel_class_mean")),
        *BEST,
    )

    @classmethod
    def columns_of(cls, settings: Mapping[str, Any]) -> tuple[Column, ...]:
        return cls.columns if settings.get("curve") else cls.columns[: -len(BEST)]

    def __init__(
        self,
        head: Head,
        features: SplitFeatures,
        novel_features: SplitFeatures | None,
        text_features: Callable[[Sequence[str], Sequence[str]], Tensor],
        history: Sequence[Mapping[str, Any]],
        *,
        curve: Natural = 0,
    ) -> None:
        if novel_features is None:
            raise InputError(
                "evaluator 'base_to_novel' needs a dataset of which half the classes are novel, got all classes; set "
                "data.classes to base"
            )
        novel = novel_features.data
        self.head = head
        self.features = features
        self.novel_features = novel_features
        self.history = history
        self.curve = curve
        self.novel_head = head.for_names(novel.class_names, lambda names: text_features(names, novel.templates))
        # Test features are made before training where the curve reads them: their time is not part of an epoch.
        self._sources = (features.of("test"), novel_features.of("test")) if curve else None
        self._base = PredictionRecorder()

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self._base.update(logits, targets)

    def compute(self) -> Iterator[tuple[str, float]]:
        yield from base_to_novel(self._base.predictions(), *self._novel_and_joint()).items()
        if self.curve:
            yield from best_epoch(self.history).items()

    def after_epoch(self, epoch: int, epochs: int) -> Iterator[tuple[str, float]]:
        if self._sources is None or (epoch % self.curve and epoch != epochs):
            return
        heads = self.head, self.novel_head
        base, novel = (
            accuracy(predict(head, source).correct) for head, source in zip(heads, self._sources, strict=True)
        )
        yield from {"base": base, "novel": novel, "h": base_novel_h(base, novel)}.items()

    def _novel_and_joint(self) -> tuple[Predictions, Predictions]:
        """Predictions of the novel images among the novel classes, and of all images among all classes."""
        both = _BothHeads(self.head, self.novel_head)
        novel, joint = PredictionRecorder(), PredictionRecorder()
        for logits, targets in logits_of(both, self.features.of("test")):
            joint.update(logits, targets)
        num_base = self.features.data.num_classes
        for logits, targets in logits_of(both, self.novel_features.of("test")):
            novel.update(logits[:, num_base:], targets)
            joint.update(logits, targets + num_base)
        return novel.predictions(), joint.predictions()


class _BothHeads(nn.Module):
    """Logits over the base and then the novel classes; no class's logit depends on the other classes."""

    def __init__(self, base: Head, novel: Head) -> None:
        super().__init__()
        self.base = base
        self.novel = novel

    def forward(self, features: Tensor) -> Tensor:
        embeddings = self.base.embed(features)
        return torch.cat([self.base.classify(embeddings), self.novel.classify(embeddings)], dim=1)


def base_to_novel(base: Predictions, novel: Predictions, joint: Predictions) -> dict[str, float]:
    """The scores of the base-to-novel protocol.

    Args:
        base: of base images among the base classes.
        novel: of novel images among the novel classes.
        joint: of all of them among all classes: first the rows of `base`, then those of `novel`.

    Raises:
        InputError: another number of rows in `joint`.
    """
    num_base = len(base.labels)
    if len(joint.labels) != num_base + len(novel.labels):
        raise InputError(
            f"`joint` must hold the rows of `base` and then those of `novel`, {num_base} + {len(novel.labels)}, got "
            f"{len(joint.labels)}"
        )
    of_base, of_novel = accuracy(base.correct), accuracy(novel.correct)
    num_classes = int(novel.labels.max()) + 1 if len(novel.labels) else 0
    return {
        "base": of_base,
        "novel": of_novel,
        "h": base_novel_h(of_base, of_novel),
        "joint": accuracy(joint.correct),
        "joint_base": accuracy(joint.correct[:num_base]),
        "joint_novel": accuracy(joint.correct[num_base:]),
        "novel_class_mean": mean(per_class_accuracy(novel.labels, novel.predicted, num_classes)),
    }


def best_epoch(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The epoch with the highest H of a curve, and base, novel and H in that epoch; NaN without a curve.

    It is chosen on test images: an upper bound, not a result.
    """
    rows = [row for row in history if not math.isnan(row.get("h", math.nan))]
    if not rows:
        return {column.name: math.nan for column in BEST}
    best = max(rows, key=lambda row: row["h"])
    return {column.name: float(best[column.name.removeprefix("best_")]) for column in BEST}
