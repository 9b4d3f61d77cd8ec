"""The test pass: a trained model over a split, in batches, whose logits every evaluator receives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from imbalance_vlm.encoders.sources import Source, evaluation_rows
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Evaluator
from imbalance_vlm.evaluation.metrics import Predictions
from imbalance_vlm.evaluation.recorder import PredictionRecorder
from imbalance_vlm.evaluation.tta import mean_logits

BATCH_SIZE = 1024


def evaluate(
    model: nn.Module, source: Source, evaluators: Sequence[Evaluator] = (), batch_size: int = BATCH_SIZE
) -> Predictions:
    """Feed each evaluator the logits and targets of a whole split, in order, and return the prediction for each image.

    Outputs of another shape reach the evaluators as they are, and have no predictions.

    Args:
        model: gives logits, (B, C) for one label per image.
        source: features or images with their targets, (B,) for one label per image.
        evaluators: receive every batch; their `compute` is left to the caller.
        batch_size: images per batch, at most; see `evaluation_rows`.

    Raises:
        InputError: non-finite logits.
    """
    recorder = PredictionRecorder()
    for logits, targets in logits_of(model, source, batch_size):
        for evaluator in (recorder, *evaluators):
            evaluator.update(logits, targets)
    return recorder.predictions()


def predict(model: nn.Module, source: Source, batch_size: int = BATCH_SIZE) -> Predictions:
    """The prediction of a model for each image of a split, in order; see `evaluate`."""
    return evaluate(model, source, (), batch_size)


@torch.no_grad()
def logits_of(model: nn.Module, source: Source, batch_size: int = BATCH_SIZE) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets, batch by batch, averaged over the views of the source.

    The shapes are those of the model and the source; a row of the logits belongs to a row of the source.

    Raises:
        InputError: a row whose logits hold nan or +inf, or are all -inf. Single classes may have -inf: so do classes
            without training images after a post-hoc correction.
    """
    model.eval()
    first = 0
    for logits, targets in mean_logits(model, source, evaluation_rows(source, batch_size)):
        defined = logits.flatten(1).amax(dim=1).isfinite()  # (B,); the maximum with a nan is nan
        if not bool(defined.all()):
            row = first + int((~defined).nonzero()[0])
            raise InputError(
                f"the logits must be finite, got nan or inf for image '{source.name(row)}'; the image's features or "
                "the trained weights are damaged: remove the feature cache of this dataset, and train again (--force)"
            )
        yield logits, targets
        first += len(logits)
