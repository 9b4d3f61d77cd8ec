"""DisAlign: the frozen classifier's logits aligned with a balanced reference distribution.

[0] Zhang, Li, Yan, He, Sun. Distribution Alignment: A Unified Framework for Long-tail Visual Recognition. CVPR 2021.
[1] github.com/Megvii-BaseDetection/DisAlign, classification/ (rho 1.2, 10 epochs of plain sampling, lr .1 in batches of
    256, cosine schedule); its layer is DisAlignLinear of github.com/Megvii-BaseDetection/cvpods

    z'_c = (1 + s(f) a_c) z_c + s(f) b_c,   s(f) = sigmoid(v . f + v_0)

a is 1 and b is 0 at the start, as in [1]: training does not start from z but from (1 + s) z, which ranks the classes in
the same order with higher confidence. The segmentation code of [1] uses s (a z + b) + (1 - s) z, the same map if a is
replaced by a - 1, and does start from z. The loss is cross-entropy weighted by pi_c^-rho and divided by the batch's
weights, as in [1].

Differs from [1] in: a and b are not decayed, and v is initialised like a linear layer of torch, where [1] sets every
entry to .1, which suits features after a ReLU but not features of either sign.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.second_stages.base import FrozenClassifierStage, Stage
from imbalance_vlm.balancing.second_stages.calibration import CalibrationTraining, train_calibration


def disalign(logits: Tensor, confidence: Tensor, magnitude: Tensor, margin: Tensor) -> Tensor:
    """Aligned logits (B, C) of logits (B, C), confidences s (B, 1) in [0, 1], magnitudes a (C,) and margins b (C,)."""
    return (1 + confidence * magnitude) * logits + confidence * margin


class DisAlign(FrozenClassifierStage):
    """Learns a magnitude and a margin per class, and how much of them applies to each image.

    Args:
        width: d.
        num_classes: C.
        settings: class weights, length and learning rate.
    """

    def __init__(self, width: int, num_classes: int, *, settings: CalibrationTraining = CalibrationTraining()) -> None:
        super().__init__(width, num_classes)
        self.settings = settings
        self.magnitude = nn.Parameter(torch.ones(num_classes))
        self.margin = nn.Parameter(torch.zeros(num_classes))
        self.confidence = nn.Linear(width, 1)

    def fit(self, stage: Stage) -> dict[str, float]:
        self.copy_classifier(stage)
        nn.init.ones_(self.magnitude)
        nn.init.zeros_(self.margin)
        self.confidence.reset_parameters()
        train_calibration(self, stage, self.settings)
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self.frozen_logits(embeddings)  # (B, C)
        return disalign(logits, self.confidence(embeddings).sigmoid(), self.magnitude, self.margin)
