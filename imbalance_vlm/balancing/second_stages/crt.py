"""cRT: the classifier retrained on balanced draws.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Section 4.1.
[1] github.com/facebookresearch/classifier-balancing, models/DotProductClassifier.py and config/*/cls_crt.yaml
    (class-aware sampling with k 4, 10 epochs, 30 for iNaturalist 2018, cosine schedule, lr .1 for Places-LT in batches
    of 256, .2 elsewhere in batches of 512)

    z = W f + b,   W and b re-initialised, f frozen; cross-entropy on class-aware draws

An epoch has N images, as in [1], whose training loop leaves the sampler after N / batch size steps. Differs from [1]
in: the rate falls at every step, where that of [1] falls at every epoch; b is not decayed; the last epoch is the
result, where [1] takes the best on validation; f is multiplied by a constant, so that its entries
have a mean square of 1 over the training set and one learning rate fits every head (the embeddings of a cosine head
have unit norm: their entries are sqrt(d) times smaller than those of a linear head).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage, batches_in_order
from imbalance_vlm.balancing.second_stages.decoupled import DecoupledTraining, train_decoupled
from imbalance_vlm.encoders.sources import Source


@torch.no_grad()
def unit_scale(source: Source) -> float:
    """The factor that gives the entries of the embeddings a mean square of 1; 1 if all are 0."""
    squares = sum(embeddings.double().square().mean(1).sum() for embeddings, _ in batches_in_order(source))
    mean = float(squares) / len(source)
    return mean**-0.5 if mean > 0 else 1.0


class CRT(SecondStage):
    """A new linear classifier, independent of the first stage's classifier.

    Args:
        width: d.
        num_classes: C.
        settings: sampler, length and learning rate.
    """

    scale: Tensor

    def __init__(self, width: int, num_classes: int, *, settings: DecoupledTraining = DecoupledTraining()) -> None:
        super().__init__(width, num_classes)
        self.settings = settings
        self.layer = nn.Linear(width, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def fit(self, stage: Stage) -> dict[str, float]:
        self.scale.fill_(unit_scale(stage.train))
        self.layer.reset_parameters()
        train_decoupled(self, stage, self.settings)
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.scale * embeddings)
        return logits
