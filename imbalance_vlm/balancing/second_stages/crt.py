"""cRT: the classifier trained anew on balanced draws.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Section 4.1.
[1] github.com/facebookresearch/classifier-balancing, models/DotProductClassifier.py and config/*/cls_crt.yaml
    (class-aware sampling with k 4, 10 epochs, 30 for iNaturalist 2018, cosine schedule, lr .1 for Places-LT in batches
    of 256, .2 elsewhere in batches of 512)

    z = W f + b,   W and b re-initialised, f frozen; cross-entropy on class-aware draws

Differs from [1] in: b is not decayed, and the last epoch is the result, where [1] takes the best on validation; f is
multiplied by one number, so that its entries have a mean square of 1 over the training set and one learning rate fits
every head (the embeddings of a cosine head have unit norm: their entries are sqrt(d) times smaller than those of a
linear head).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Count, Positive
from imbalance_vlm.encoders.sources import Source

ROWS = 1024
"""Embeddings taken at a time."""


@torch.no_grad()
def unit_scale(source: Source) -> float:
    """What the embeddings must be multiplied by for their entries to have a mean square of 1; 1 if all are 0."""
    rows = torch.arange(len(source)).split(ROWS)
    squares = sum(embeddings.double().square().mean(1).sum() for embeddings, _ in source.batches(rows))
    mean = float(squares) / len(source)
    return mean**-0.5 if mean > 0 else 1.0


class CRT(SecondStage):
    """A new linear classifier; nothing of the first stage's classifier enters it.

    Args:
        width: d.
        num_classes: C.
        sampler: which embeddings an epoch shows, by its recipe name.
        epochs: passes, each as long as the training set.
        lr: peak learning rate.
        batch_size: embeddings to a step.

    Raises:
        InputError: a sampler that does not exist.
    """

    trains = True
    scale: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        sampler: str = "class_aware",
        epochs: Count = 10,
        lr: Positive = 0.1,
        batch_size: Count = 512,
    ) -> None:
        super().__init__(width, num_classes)
        catalogue.SAMPLERS.get(sampler)  # a wrong name is refused here, before the first stage has cost anything
        self.sampler = sampler
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.layer = nn.Linear(width, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def fit(self, stage: Stage) -> dict[str, float]:
        self.scale.fill_(unit_scale(stage.train))
        self.layer.reset_parameters()
        criterion = create_loss("cross_entropy", stage.tail)
        stage.train_classifier(
            self, criterion, self.sampler, epochs=self.epochs, lr=self.lr, batch_size=self.batch_size
        )
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.scale * embeddings)
        return logits
