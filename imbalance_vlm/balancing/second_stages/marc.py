"""MARC: the margins of the frozen classifier calibrated by class.

[0] Wang, Zhang, Hou, Wu, Wang, Shinozaki. Margin Calibration for Long-Tailed Visual Recognition. ACML 2022.
[1] github.com/Imbalance-VLM/Imbalance-VLM, by authors of [0]: MARC_Net in imblearn/algorithms/supervised/utils.py, and
    config/imb_clip_stage2_algs/ (the weighted loss of DisAlign with rho 1.2, 8192 steps of plain sampling, lr .03 in
    batches of 256)

    z'_c = a_c z_c + b_c |w_c|

A margin is a logit divided by the norm of its weights, so that a and b scale and shift the margin of each class.
Training starts from z, with a at 1 and b at 0. The loss is cross-entropy weighted by pi_c^-rho and divided by the
batch's weights, as in [1].

Differs from [1] in: the norms are saved with the module, where [1] takes them from the classifier that exists when
it is constructed; a and b are not decayed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.second_stages.base import FrozenClassifierStage, Stage
from imbalance_vlm.balancing.second_stages.calibration import CalibrationTraining, train_calibration


def marc(logits: Tensor, norms: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """Calibrated logits (B, C) of logits (B, C), weight norms (C,), slopes a (C,) and shifts b (C,)."""
    return slope * logits + shift * norms


class MARC(FrozenClassifierStage):
    """Learns a slope and a shift of the margin per class: 2 C parameters.

    Args:
        width: d.
        num_classes: C.
        settings: class weights, length and learning rate.
    """

    norms: Tensor

    def __init__(
        self, width: int, num_classes: int, *, settings: CalibrationTraining = CalibrationTraining(lr=0.03)
    ) -> None:
        super().__init__(width, num_classes)
        self.settings = settings
        self.register_buffer("norms", torch.zeros(num_classes))
        self.slope = nn.Parameter(torch.ones(num_classes))
        self.shift = nn.Parameter(torch.zeros(num_classes))

    def fit(self, stage: Stage) -> dict[str, float]:
        self.copy_classifier(stage)
        self.norms.copy_(stage.weight().norm(dim=1))
        nn.init.ones_(self.slope)
        nn.init.zeros_(self.shift)
        train_calibration(self, stage, self.settings)
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self.frozen_logits(embeddings)  # (B, C)
        return marc(logits, self.norms, self.slope, self.shift)
