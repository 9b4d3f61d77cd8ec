"""ProGrad: CoOp whose steps do not go against the zero-shot model.

[0] Zhu, Niu, Han, Wu, Zhang. Prompt-aligned Gradient for Prompt Tuning. ICCV 2023.
[1] github.com/BeierZhu/Prompt-align, trainers/prograd.py

The head is CoOp's; the gradient is changed by `imbalance_vlm/balancing/gradients/prograd.py`, which says how.

Differs from [1] in: any loss in place of cross-entropy; the zero-shot model reads the dataset's own sentences.
"""

from __future__ import annotations

from typing import Any

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.gradients.prograd import ProGrad
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import PromptTuning


class ProGradTuning(PromptTuning):
    """CoOp with the gradient transform `prograd`, unless the recipe names another.

    Args:
        strength: lambda, how much of the conflicting part is taken away; 0 is CoOp.
        temperature: of both distributions.
        shared: the settings of `PromptTuning`.
    """

    def __init__(self, *, strength: NonNegative = 1.0, temperature: Positive = 1.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.strength = strength
        self.temperature = temperature

    def gradient(self, task: Task) -> Gradient:
        return ProGrad(task.encoder.logit_scale, strength=self.strength, temperature=self.temperature)
