"""Accuracy of a model that was trained on one dataset on the classes and images of other datasets.

[0] Zhou, Yang, Loy, Liu. Conditional Prompt Learning for Vision-Language Models. CVPR 2022. (cross-dataset transfer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from imbalance_vlm.components.ranges import Nested
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Column, Evaluator, SplitFeatures
from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.evaluation.metrics import accuracy, mean
from imbalance_vlm.heads.base import Head


class Transfer(Evaluator):
    """Accuracy (percent) on other datasets, each among its own classes: `transfer_<dataset>`, and their mean.

    Args:
        head: classifies by class names.
        open_features: the features of a dataset's section.
        text_features: (M, d) unit text features of names in templates, from the untouched tower.
        datasets: sections of datasets, each with its `name` and settings.

    Raises:
        InputError: two datasets of one name.
    """

    columns = (Column("transfer"),)

    @classmethod
    def columns_of(cls, settings: Mapping[str, Any]) -> tuple[Column, ...]:
        return (*(Column(f"transfer_{section['name']}") for section in settings["datasets"]), *cls.columns)

    def __init__(
        self,
        head: Head,
        open_features: Callable[[Mapping[str, Any]], SplitFeatures],
        text_features: Callable[[Sequence[str], Sequence[str]], Tensor],
        *,
        datasets: Annotated[list[dict[str, Any]], Nested("datasets")],
    ) -> None:
        names = [section["name"] for section in datasets]
        if len(set(names)) < len(names):
            raise InputError(f"`datasets` must name each dataset once, got {', '.join(names)}")
        self.head = head
        self.open_features = open_features
        self.text_features = text_features
        self.datasets = datasets

    def compute(self) -> Iterator[tuple[str, float]]:
        accuracies = []
        for section in self.datasets:
            features = self.open_features(section)
            predictions = predict(self._head_for(features.data), features.of("test"))
            accuracies.append(accuracy(predictions.correct))
            yield f"transfer_{section['name']}", accuracies[-1]
        yield "transfer", mean(np.array(accuracies, dtype=float))

    def _head_for(self, data: Dataset) -> Head:
        return self.head.for_names(data.class_names, lambda names: self.text_features(names, data.templates))
