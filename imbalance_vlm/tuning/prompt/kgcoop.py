"""KgCoOp: knowledge-guided context optimisation.

[0] Yao, Zhang, Xu. Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization. CVPR 2023.
[1] github.com/htyao89/KgCoOp, trainers/kgcoop.py; its settings: 4 words, batch 128, 100 epochs

    L = loss + 8 * 1/C sum_c (1 - cos(t_c, t_c_frozen))

t_c_frozen is the untouched tower's feature of the class name in the dataset's own sentence.

Differs from [1] in: any loss in place of cross-entropy; the sentence can be a different one, or the mean of several.
"""

from __future__ import annotations

from typing import Any

from imbalance_vlm.balancing.regularizers.base import Regularizer
from imbalance_vlm.balancing.regularizers.text_anchor import AnchorTarget, TextAnchor, templates_of
from imbalance_vlm.components.ranges import NonNegative
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import PromptTuning


class KgCoOp(PromptTuning):
    """CoOp whose text features stay near those of the sentence that a person would write.

    Args:
        weight: of the distance.
        target: what to stay near: the first of the dataset's sentences ("template"), or the mean of all ("ensemble").
        shared: the settings of `PromptTuning`.
    """

    def __init__(self, *, weight: NonNegative = 8.0, target: AnchorTarget = "template", **shared: Any) -> None:
        super().__init__(**shared)
        self.weight = weight
        self.target = target

    def regularizers(self, task: Task) -> list[Regularizer]:
        frozen = task.encoder.text_features(task.class_names, templates_of(task.templates, self.target))
        return [TextAnchor(None, frozen, names="base", distance="cos", weight=self.weight)]
