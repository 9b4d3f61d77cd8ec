"""What comes after a head's own training: the second stage and the post-hoc correction, fitted on its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.corrected import Corrected
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.sources import FeatureSource, Source, evaluation_rows
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.training.loop import steps_per_epoch, train
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.training.schedules import cosine

WEIGHT_DECAY = 5e-4


@torch.no_grad()
def embedded(head: Head, source: Source, device: torch.device, batch_size: int = 1024) -> FeatureSource:
    """What a head makes of a split, every view of it, in memory."""
    head.eval()
    rows = evaluation_rows(source, batch_size)
    views = [
        torch.cat([head.embed(features).float().cpu() for features, _ in source.batches(rows, view)])
        for view in range(source.num_views)
    ]
    return FeatureSource([view.numpy() for view in views], source.labels.cpu().numpy(), device)


def correct(
    model: Corrected,
    train_source: Callable[[], Source],
    validation_source: Source | None,
    test_views: Callable[[], Source],
    tail: LongTail,
    seed: int,
    folder: Path,
) -> dict[str, float]:
    """Fit a model's second stage and post-hoc correction, in place, and say what was chosen on the validation set.

    Args:
        model: a trained head with blank corrections.
        train_source, validation_source, test_views: the features of the splits; of the test images, two random views.
        tail: the training counts.
        seed: of the run.
        folder: takes the checkpoints of what is trained.

    Returns:
        The chosen values, by key path below `balancing` ("second_stage.tau").
    """
    head = model.head
    chosen: dict[str, float] = {}
    device = next(head.parameters(), head.classifier()[0]).device
    validation = None if validation_source is None else embedded(head, validation_source, device)
    torch.manual_seed(seed)  # what follows starts the same, however training came to its end
    if model.second_stage is not None:
        embeddings = embedded(head, train_source(), device)
        stage = Stage(
            head.requires_grad_(False),
            embeddings,
            validation,
            tail,
            partial(_train_classifier, source=embeddings, seed=seed, folder=folder),
            lambda: _views(embedded(head, test_views(), device)),
        )
        chosen |= {f"second_stage.{key}": value for key, value in model.second_stage.fit(stage).items()}
    model.eval()
    if model.post_hoc is not None:
        logits, labels = (None, None) if validation is None else _logits(model, validation)
        chosen |= {f"post_hoc.{key}": value for key, value in model.post_hoc.fit(logits, labels).items()}
    return chosen


@torch.no_grad()
def _logits(model: Corrected, validation: FeatureSource) -> tuple[Tensor, Tensor]:
    """(N, C) logits before the correction, and (N,) labels."""
    rows = torch.arange(len(validation)).split(1024)
    logits = torch.cat([model.logits(embeddings) for embeddings, _ in validation.batches(rows)])
    return logits, validation.labels


class _AsHead(Head):
    """A module on embeddings in the place of a head, as the training loop wants one."""

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
    sampler: str,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    source: Source,
    seed: int,
    folder: Path,
) -> None:
    """SGD with momentum .9, weight decay 5e-4 on matrices, and a rate that falls to 0 along a cosine."""
    objective = Objective(_AsHead(module), criterion).to(source.labels.device)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = sgd(parameters, lr=lr, momentum=0.9, weight_decay=WEIGHT_DECAY)
    schedule = cosine(optimizer, epochs, steps_per_epoch(source, batch_size))
    order = catalogue.SAMPLERS.get(sampler).load()(source.labels.cpu(), seed)
    folder.mkdir(parents=True, exist_ok=True)
    train(objective, source, order, optimizer, schedule, folder, epochs=epochs, batch_size=batch_size)
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def _views(source: FeatureSource) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(view, device=source.device) for view in source.views)
    return first, second
