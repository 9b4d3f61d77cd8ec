"""KgCoOp: knowledge-guided context optimisation.

[0] Yao, Zhang, Xu. Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization. CVPR 2023.
[1] github.com/htyao89/KgCoOp, trainers/kgcoop.py; its settings: 4 words, batch 128, 100 epochs

    L = loss + 8 * 1/C sum_c (1 - cos(t_c, t_c_frozen))

t_c_frozen is the frozen tower's feature of the class name in the dataset's own sentence.

Differs from [1] in: any loss instead of cross-entropy; the sentence can be another one, or the mean of several.
"""

from __future__ import annotations

from imbalance_vlm.balancing.regularizers.base import Regularizer
from imbalance_vlm.balancing.regularizers.text_anchor import AnchorTarget, TextAnchor, target_templates
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import CachedCrops
from imbalance_vlm.tuning.prompt.coop import CoOp
from imbalance_vlm.tuning.prompt.settings import Prompt, TextMemory


class KgCoOp(CoOp):
    """CoOp whose text features stay near those of a hand-written sentence.

    Args:
        weight: weight of the distance.
        target: frozen text features: those of the dataset's first sentence ("template"), or the mean over all
            ("ensemble").
        prompt: the prompt and its start.
        csc: whether each class has its own context, instead of one that all classes share.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    def __init__(
        self,
        *,
        weight: NonNegative = 8.0,
        target: AnchorTarget = "template",
        prompt: Prompt = Prompt(),
        csc: bool = False,
        crops: CachedCrops = CachedCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__(prompt=prompt, csc=csc, crops=crops, memory=memory)
        self.weight = weight
        self.target: AnchorTarget = target

    def regularizers(self, context: TuningContext) -> list[Regularizer]:
        templates = target_templates(context.templates, self.target)
        frozen = context.text_features(context.class_names, templates)
        return [TextAnchor(None, frozen, distance="cos", weight=self.weight)]
