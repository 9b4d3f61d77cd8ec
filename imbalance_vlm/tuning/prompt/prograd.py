"""ProGrad: CoOp whose steps do not go against the zero-shot model.

[0] Zhu, Niu, Han, Wu, Zhang. Prompt-aligned Gradient for Prompt Tuning. ICCV 2023.
[1] github.com/BeierZhu/Prompt-align, trainers/prograd.py

The head is CoOp's; the gradient is that of `imbalance_vlm/balancing/gradients/prograd.py`, which has the formula.

Differs from [1] in: any loss instead of cross-entropy; the zero-shot model reads the dataset's own sentences.
"""

from __future__ import annotations

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.gradients.prograd import ProGrad
from imbalance_vlm.components.ranges import NonNegative, Positive
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import CachedCrops
from imbalance_vlm.tuning.prompt.coop import CoOp
from imbalance_vlm.tuning.prompt.settings import Prompt, TextMemory


class ProGradTuning(CoOp):
    """CoOp with the gradient transform `prograd`, unless the recipe names another.

    Args:
        strength: share lambda of the conflicting part of the gradient that is removed; 0 is CoOp.
        temperature: temperature of both distributions.
        prompt: the prompt and its start.
        csc: whether each class has its own context, instead of one that all classes share.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    def __init__(
        self,
        *,
        strength: NonNegative = 1.0,
        temperature: Positive = 1.0,
        prompt: Prompt = Prompt(),
        csc: bool = False,
        crops: CachedCrops = CachedCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__(prompt=prompt, csc=csc, crops=crops, memory=memory)
        self.strength = strength
        self.temperature = temperature

    def gradient(self, context: TuningContext) -> Gradient:
        return ProGrad(context.encoder.logit_scale, strength=self.strength, temperature=self.temperature)
