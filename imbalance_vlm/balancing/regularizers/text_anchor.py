"""Text anchor: learned text features stay near those of the frozen text tower. One term, used in several papers.

[0] Yao, Zhang, Xu. Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization. CVPR 2023. (KgCoOp)
    Ma, Liu, Deng, Xie, Dong, Xu. Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models.
    TCSVT 2023. (NFL, the novel feature learner)
    Khattak, Wasim, Naseer, Khan, Yang, Khan. Self-regulating Prompts: Foundational Model Adaptation without Forgetting.
    ICCV 2023. (PromptSRC)
[1] github.com/htyao89/KgCoOp, trainers/kgcoop.py; github.com/machengcheng2016/Subspace-Prompt-Learning;
    github.com/muzairkhattak/PromptSRC, trainers/promptsrc.py

    L = 1/M sum_i dist(g(v, name_i), w_i),   w_i: the frozen feature of name_i in one sentence, or the mean over several

    cos       1 - cos(t, w)
    l1        sum_j |t_j - w_j|
    mean_l1   1/d sum_j |t_j - w_j|
    l2        sum_j (t_j - w_j)^2, which for unit features is 2 (1 - cos)

    KgCoOp                 names base,              cos,     weight 8
    NFL                    names novel or external, cos,     weight 1
    PromptSRC's text term  names base,              mean_l1, weight 25
    CPT's stabiliser       names base,              l1,      weight .10

Novel names are those of classes that are tested but not trained: their names are used, their images are not. External
names are drawn from those of ImageNet classes that are neither trained nor tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, RunText, StepOutputs
from imbalance_vlm.components.ranges import Count, NonNegative
from imbalance_vlm.errors import InputError

AnchorNames = Literal["base", "novel", "external"]
AnchorTarget = Literal["template", "ensemble"]
AnchorDistance = Literal["cos", "l1", "mean_l1", "l2"]


def text_distance(learned: Tensor, frozen: Tensor, distance: AnchorDistance) -> Tensor:
    """Distance of each row, (M, d), (M, d) -> (M,)."""
    if distance == "cos":
        return 1 - F.cosine_similarity(learned, frozen, dim=-1)
    difference = learned - frozen
    if distance == "l2":
        return difference.square().sum(-1)
    return difference.abs().sum(-1) if distance == "l1" else difference.abs().mean(-1)


def target_templates(templates: Sequence[str], target: AnchorTarget) -> Sequence[str]:
    """The sentences of the frozen features: the dataset's first ("template"), or all ("ensemble")."""
    return templates if target == "ensemble" else templates[:1]


class TextAnchor(Regularizer):
    """Distance of learned text features to frozen ones, mean over the names.

    `text_anchor` makes it from the settings of a recipe.

    Args:
        learned: returns the learned features (M, d) of other names; None for those of the trained classes, which the
            step has already computed.
        frozen: (M, d) features to stay near; None for the frozen features of the trained classes.
        distance: "cos", "l1", "mean_l1" or "l2".
        weight: factor of the term in the objective.

    Raises:
        InputError: a head that learns no text, or features of different shapes.
    """

    frozen: Tensor | None

    def __init__(
        self,
        learned: Callable[[], Tensor] | None = None,
        frozen: Tensor | None = None,
        *,
        distance: AnchorDistance = "cos",
        weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(weight)
        self.learned = learned
        self.register_buffer("frozen", None if frozen is None else frozen.detach().clone(), persistent=False)
        self.distance: AnchorDistance = distance

    def forward(self, outputs: StepOutputs) -> Tensor:
        learned = outputs.text if self.learned is None else self.learned()
        frozen = outputs.frozen_text if self.frozen is None else self.frozen
        if learned is None or frozen is None:
            raise _no_learned_text()
        if learned.shape != frozen.shape:
            raise InputError(
                f"`frozen` must have the shape of the learned text features, {tuple(learned.shape)}, "
                f"got {tuple(frozen.shape)}"
            )
        return text_distance(learned, frozen.to(learned), self.distance).mean()


def text_anchor(
    text: RunText | None,
    *,
    names: AnchorNames = "base",
    target: AnchorTarget = "ensemble",
    distance: AnchorDistance = "cos",
    weight: NonNegative = 1.0,
    external: Count = 100,
) -> TextAnchor:
    """The distance of learned text features to those of the frozen text tower, mean over the names.

    Args:
        text: the text side of the run; None for a run that learns no text features.
        names: whose text features are kept near the frozen ones: those of the trained classes ("base"), of the classes
            that are only tested ("novel"), or of other classes ("external").
        target: the frozen feature is that of the dataset's first sentence ("template"), or the mean over all its
            sentences ("ensemble").
        distance: "cos", "l1", "mean_l1" or "l2".
        weight: factor of the term in the objective.
        external: number of external names, drawn by the run's seed.

    Raises:
        InputError: a run that learns no text features, novel names where there are none, more external names than
            exist, or names of untrained classes with a context per class.
    """
    if text is None:
        raise _no_learned_text()
    templates = target_templates(text.templates, target)
    if names == "base":
        # The objective already has the frozen features averaged over all sentences.
        frozen = None if target == "ensemble" else text.frozen(text.class_names, templates)
        return TextAnchor(None, frozen, distance=distance, weight=weight)
    other_names = _novel_names(text) if names == "novel" else external_names(text, external)
    return TextAnchor(text.learned(other_names), text.frozen(other_names, templates), distance=distance, weight=weight)


def _novel_names(text: RunText) -> Sequence[str]:
    if not text.novel_names:
        raise InputError(
            "regularizer 'text_anchor' with names 'novel' needs classes that are tested but not trained, got none; "
            "set data.classes to base, or names to external"
        )
    return text.novel_names


def external_names(text: RunText, count: int) -> list[str]:
    """Names of ImageNet classes that are neither trained nor tested and fit into the text tower, drawn by the seed.

    Raises:
        InputError: `count` is larger than the number of such names.
    """
    from open_clip import IMAGENET_CLASSNAMES

    excluded = {name.replace("_", " ").lower() for name in (*text.class_names, *text.novel_names)}
    fitting = text.fitting(sorted({name for name in IMAGENET_CLASSNAMES if name.lower() not in excluded}))
    if len(fitting) < count:
        raise InputError(
            f"`external` of regularizer 'text_anchor' must be at most {len(fitting)}, the number of ImageNet names "
            f"that are not in the dataset and not too long for the text tower, got {count}"
        )
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(text.seed))
    return [fitting[number] for number in order[:count].tolist()]


def _no_learned_text() -> InputError:
    return InputError(
        "regularizer 'text_anchor' needs text features that are learned, and this run learns none; set tuning to a "
        "method that does, such as {name: prompt, method: coop}"
    )
