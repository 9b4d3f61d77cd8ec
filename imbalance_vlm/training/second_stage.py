"""Fits the corrections of a trained head: its second stage, on its embeddings, and its post-hoc correction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.corrected import CorrectedClassifier
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.second_stages.base import MakeSampler, Stage, StageTraining, batches_in_order
from imbalance_vlm.encoders.sources import FeatureSource, Source, evaluation_rows
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.training.checkpoints import CHECKPOINT_FILE
from imbalance_vlm.training.loop import steps_per_epoch, train
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.training.schedules import cosine
from imbalance_vlm.training.settings import TrainingSettings

WEIGHT_DECAY = 5e-4


@torch.no_grad()
def embedded(head: Head, source: Source, device: torch.device, batch_size: int = 1024) -> FeatureSource:
    """A head's embeddings of a split, of each view, in memory.

    Raises:
        InputError: embeddings that are nan or infinite.
    """
    head.eval()
    rows = evaluation_rows(source, batch_size)
    views = [
        torch.cat([head.embed(features).float().cpu() for features, _ in source.batches(rows, view)])
        for view in range(source.num_views)
    ]
    return FeatureSource([view.numpy() for view in views], source.labels.cpu().numpy(), device, source.name)


def correct(
    model: CorrectedClassifier,
    train_source: Callable[[], Source],
    validation_source: Source | None,
    test_views: Callable[[], Source],
    long_tail: LongTail,
    seed: int,
    folder: Path,
) -> dict[str, float]:
    """Fit a model's second stage and post-hoc correction, in place.

    Args:
        model: a trained head with blank corrections.
        train_source: gives the features of the training set.
        validation_source: features of the validation set; None where there is none.
        test_views: gives the features of the test images, two random views of each.
        long_tail: the training counts.
        seed: of the run.
        folder: takes the checkpoints of the second stage.

    Returns:
        What was chosen on the validation set, by key path below `balancing` ("second_stage.tau").
    """
    head = model.head
    chosen: dict[str, float] = {}
    device = next(head.parameters(), head.classifier()[0]).device
    validation = None if validation_source is None else embedded(head, validation_source, device)
    torch.manual_seed(seed)  # so that the corrections do not depend on whether training was resumed
    if model.second_stage is not None:
        embeddings = embedded(head, train_source(), device)
        stage = Stage(
            head.requires_grad_(False),
            embeddings,
            validation,
            long_tail,
            partial(_train_classifier, source=embeddings, seed=seed, folder=folder),
            lambda: _two_views(embedded(head, test_views(), device)),
        )
        chosen |= {f"second_stage.{key}": value for key, value in model.second_stage.fit(stage).items()}
    model.eval()
    if model.post_hoc is not None:
        logits, labels = (None, None) if validation is None else _logits(model, validation)
        chosen |= {f"post_hoc.{key}": value for key, value in model.post_hoc.fit(logits, labels).items()}
    return chosen


@torch.no_grad()
def _logits(model: CorrectedClassifier, validation: FeatureSource) -> tuple[Tensor, Tensor]:
    """(N, C) logits before the post-hoc correction, and (N,) labels."""
    return torch.cat([model.logits(embeddings) for embeddings, _ in batches_in_order(validation)]), validation.labels


class _ClassifierHead(Head):
    """A module from embeddings to logits as a head, which the training loop takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def embed(self, features: Tensor) -> Tensor:
        return features

    def classify(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.module(embeddings)
        return logits


def _train_classifier(
    module: nn.Module,
    criterion: Loss,
    make_sampler: MakeSampler,
    training: StageTraining,
    *,
    source: Source,
    seed: int,
    folder: Path,
) -> None:
    """Train with SGD, momentum .9, weight decay 5e-4 on matrices, and a cosine schedule that ends at 0."""
    objective = Objective(_ClassifierHead(module), criterion).to(source.labels.device)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = sgd(parameters, lr=training.lr, momentum=0.9, weight_decay=WEIGHT_DECAY)
    schedule = cosine(training.epochs, steps_per_epoch(source, training.batch_size))
    sampler = make_sampler(source.labels.cpu(), seed)
    settings = TrainingSettings(epochs=training.epochs, batch_size=training.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    train(objective, source, sampler, optimizer, schedule, folder, settings=settings)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _two_views(source: FeatureSource) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(view, device=source.device) for view in source.views)
    return first, second
