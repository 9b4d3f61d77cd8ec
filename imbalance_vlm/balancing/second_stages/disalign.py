"""DisAlign: the frozen classifier's logits aligned with a balanced reference distribution.

[0] Zhang, Li, Yan, He, Sun. Distribution Alignment: A Unified Framework for Long-tail Visual Recognition. CVPR 2021.
[1] github.com/Megvii-BaseDetection/DisAlign, classification/ (rho 1.2, 10 epochs of plain sampling, lr .1 in batches of
    256, cosine schedule); its layer is DisAlignLinear of github.com/Megvii-BaseDetection/cvpods

    z'_c = (1 + s(f) a_c) z_c + s(f) b_c,   s(f) = sigmoid(v . f + v_0)

a is 1 and b is 0 at the start, as in [1]: training sets out from (1 + s) z, which ranks the classes as z does but is
surer of it, and not from z itself. The segmentation code of [1] writes s (a z + b) + (1 - s) z, the same map with a - 1
for a, and does start from z. The loss is cross-entropy weighted by pi_c^-rho and divided by the batch's weights, as in
[1].

Differs from [1] in: a and b are not decayed, and v starts as torch starts a linear layer, where [1] has .1 in every
entry: that suits features after a ReLU, not those of either sign.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.components.ranges import Count, NonNegative, Positive


def disalign(logits: Tensor, confidence: Tensor, magnitude: Tensor, margin: Tensor) -> Tensor:
    """Aligned logits (B, C) of logits (B, C), confidences s (B, 1) in [0, 1], magnitudes a (C,) and margins b (C,)."""
    return (1 + confidence * magnitude) * logits + confidence * margin


class DisAlign(SecondStage):
    """Trains a magnitude and a margin a class, and how much of them each image gets.

    Args:
        width: d.
        num_classes: C.
        rho: exponent of the class weights, >= 0; the larger, the more the rare classes count.
        epochs: passes over the training set.
        lr: peak learning rate.
        batch_size: embeddings to a step.
    """

    trains = True
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        rho: NonNegative = 1.2,
        epochs: Count = 10,
        lr: Positive = 0.1,
        batch_size: Count = 256,
    ) -> None:
        super().__init__(width, num_classes)
        self.rho = rho
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.magnitude = nn.Parameter(torch.ones(num_classes))
        self.margin = nn.Parameter(torch.zeros(num_classes))
        self.confidence = nn.Linear(width, 1)

    def fit(self, stage: Stage) -> dict[str, float]:
        self.weight.copy_(stage.weight())
        self.bias.copy_(stage.bias())
        nn.init.ones_(self.magnitude)
        nn.init.zeros_(self.margin)
        self.confidence.reset_parameters()
        criterion = create_loss("weighted", stage.tail, rho=self.rho, reduction="weights")
        stage.train_classifier(self, criterion, "instance", epochs=self.epochs, lr=self.lr, batch_size=self.batch_size)
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = F.linear(embeddings, self.weight, self.bias)  # (B, C)
        return disalign(logits, self.confidence(embeddings).sigmoid(), self.magnitude, self.margin)
