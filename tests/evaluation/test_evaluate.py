"""The test pass: what evaluators receive, what is recorded, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import ArrayImages, Split
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.sources import EVALUATION_NUMBERS, PixelSource
from imbalance_vlm.evaluation.base import Evaluator
from imbalance_vlm.evaluation.evaluate import evaluate, predict
from tests.evaluation.scenes import LogitSource

CLASSES = 6


class Received(Evaluator):
    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.batches.append((logits, targets))


@pytest.mark.parametrize("batch_size", [7, 64])
def test_predictions_are_torchs(batch_size: int) -> None:
    logits, labels = 4 * torch.randn(50, CLASSES), torch.arange(50) % CLASSES
    predictions = predict(torch.nn.Identity(), LogitSource(logits, labels), batch_size)
    assert predictions.labels.tolist() == labels.tolist()
    assert predictions.predicted.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(predictions.confidence, logits.softmax(1).max(1).values, rtol=1e-5)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(predictions.nll, expected, rtol=1e-4, atol=1e-5)


def test_every_evaluator_receives_every_batch_without_gradient() -> None:
    logits, labels = torch.randn(10, CLASSES), torch.arange(10) % CLASSES
    model, first, second = torch.nn.Linear(CLASSES, CLASSES), Received(), Received()
    evaluate(model, LogitSource(logits, labels), [first, second], batch_size=4)
    assert not model.training
    for evaluator in (first, second):
        assert [len(targets) for _, targets in evaluator.batches] == [4, 4, 2]
        assert not any(batch.requires_grad for batch, _ in evaluator.batches)
        assert torch.equal(torch.cat([targets for _, targets in evaluator.batches]), labels)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_logits_that_are_not_finite_are_refused_with_the_name_of_the_image(value: float, batch_size: int) -> None:
    logits = torch.zeros(8, CLASSES)
    logits[5, 2] = value
    with pytest.raises(InputError, match=r"finite, got nan or inf for image '5\.png'.*--force"):
        predict(torch.nn.Identity(), LogitSource(logits, torch.zeros(8, dtype=torch.long)), batch_size)


def test_one_view_that_is_not_finite_is_enough() -> None:
    class Views(LogitSource):
        num_views = 2

        def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for logits, labels in super().batches(rows):
                yield logits / (1 - epoch), labels  # 0 / 0 in the second view

    with pytest.raises(InputError, match=r"'0\.png'"):
        predict(torch.nn.Identity(), Views(torch.zeros(8, CLASSES), torch.zeros(8, dtype=torch.long)))


def test_a_class_may_have_minus_infinity_but_not_all_classes() -> None:
    """A post-hoc correction rules out classes without training images in this way."""
    logits = torch.zeros(4, CLASSES)
    logits[:, 1] = -math.inf
    labels = torch.tensor([0, 1, 2, 3])
    predictions = predict(torch.nn.Identity(), LogitSource(logits, labels))
    assert predictions.nll[1] == math.inf
    logits[2] = -math.inf
    with pytest.raises(InputError, match="'2.png'"):
        predict(torch.nn.Identity(), LogitSource(logits, labels))


def test_a_split_without_images_gives_no_predictions() -> None:
    predictions = predict(torch.nn.Identity(), LogitSource(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.long)))
    assert [len(part) for part in vars(predictions).values()] == [0] * 4


def test_large_images_are_evaluated_few_at_a_time() -> None:
    sizes: list[int] = []

    class RecordsSizes(torch.nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            sizes.append(len(pixels))
            means = pixels.flatten(1).mean(1)
            return torch.stack([means, -means], dim=1)

    images = ArrayImages(np.random.default_rng(0).integers(0, 255, (60, 224, 224, 3), dtype=np.uint8))
    preprocessing = Preprocessing((224, 224), mean=(0, 0, 0), std=(1, 1, 1))
    source = PixelSource(Split(images, np.zeros(60, np.int64)), [preprocessing], torch.device("cpu"))
    assert len(predict(RecordsSizes(), source, 1024).predicted) == 60
    assert sizes == [27, 27, 6]
    assert EVALUATION_NUMBERS["cpu"] // (3 * 224 * 224) == 27
