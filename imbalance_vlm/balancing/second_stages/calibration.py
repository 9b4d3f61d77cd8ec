"""Training of DisAlign and MARC: class-weighted cross-entropy on shuffled passes over the training set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from imbalance_vlm.balancing.losses.weighted import Weighted
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.balancing.second_stages.base import Stage, StageTraining
from imbalance_vlm.components.ranges import NonNegative


@dataclass(frozen=True, kw_only=True)
class CalibrationTraining(StageTraining):
    """How the calibration of a frozen classifier is trained.

    Args:
        rho: exponent of the class weights; with a larger one, rare classes count for more.
    """

    rho: NonNegative = 1.2


def train_calibration(module: nn.Module, stage: Stage, training: CalibrationTraining) -> None:
    """Train a module from embeddings to logits, in place; the loss is divided by the batch's weights."""
    criterion = Weighted(stage.long_tail, rho=training.rho, reduction="weights")
    stage.train_classifier(module, criterion, InstanceSampler, training)
