"""LWS: one learnable scale per class on the frozen classifier.

[0] Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis. Decoupling Representation and Classifier for Long-Tailed
    Recognition. ICLR 2020. Section 4.4 (learnable weight scaling).
[1] github.com/facebookresearch/classifier-balancing, models/TauNormClassifier.py and config/*/cls_lws.yaml
    (class-aware sampling with k 4, 5 epochs, cosine schedule, lr .1 for Places-LT in batches of 256, .2 elsewhere in
    batches of 512)

    z'_c = s_c (w_c . f + b_c),   s 1 at the start; cross-entropy on class-aware draws

The bias is scaled with the weights, as in [1]; [0] writes the classifier without one. An epoch has N images, as in
[1]. Differs from [1] in: the rate falls at every step, as in cRT; no weight decay on s, which it would pull to 0; the
last epoch is the result, where [1] takes the best on validation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.second_stages.base import FrozenClassifierStage, Stage
from imbalance_vlm.balancing.second_stages.decoupled import DecoupledTraining, train_decoupled


class LWS(FrozenClassifierStage):
    """The first stage's logits, each multiplied by a learned scale of its class.

    Args:
        width: d.
        num_classes: C.
        settings: sampler, length and learning rate.
    """

    def __init__(
        self, width: int, num_classes: int, *, settings: DecoupledTraining = DecoupledTraining(epochs=5)
    ) -> None:
        super().__init__(width, num_classes)
        self.settings = settings
        self.scales = nn.Parameter(torch.ones(num_classes))

    def fit(self, stage: Stage) -> dict[str, float]:
        self.copy_classifier(stage)
        nn.init.ones_(self.scales)
        train_decoupled(self, stage, self.settings)
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.scales * self.frozen_logits(embeddings)
