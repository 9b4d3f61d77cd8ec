"""Text anchor: learned text features stay near those of the frozen text tower. One term, used in several papers.

[0] Yao, Zhang, Xu. Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization. CVPR 2023. (KgCoOp)
    Ma, Liu, Deng, Xie, Dong, Xu. Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models.
    TCSVT 2023. (NFL, the novel feature learner)
    Khattak, Wasim, Naseer, Khan, Yang, Khan. Self-regulating Prompts: Foundational Model Adaptation without Forgetting.
    ICCV 2023. (PromptSRC)
[1] github.com/htyao89/KgCoOp, trainers/kgcoop.py; github.com/machengcheng2016/Subspace-Prompt-Learning,
    trainers/coop_nfl.py and zsclip.py; github.com/muzairkhattak/PromptSRC, trainers/promptsrc.py

    L = 1/M sum_i dist(g(v, name_i), w_i),   w_i: the frozen feature of name_i in one sentence, or the mean over several

    cos       1 - cos(t, w)
    l1        sum_j |t_j - w_j|
    mean_l1   1/d sum_j |t_j - w_j|
    l2        sum_j (t_j - w_j)^2, which for unit features is 2 (1 - cos)

    KgCoOp                 names base,              cos,     weight 8
    NFL                    names novel or external, cos,     weight 1,  the mean over CLIP's 80 sentences and one more
    PromptSRC's text term  names base,              mean_l1, weight 25, the mean over 60 of them
    CPT's stabiliser       names base,              l1,      weight .10

Novel names are those of classes that are tested but not trained: their names are used, their images are not. External
names are those of 100 ImageNet classes, the same for all datasets and seeds; some may also be trained or tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, RunText, StepOutputs
from imbalance_vlm.components.ranges import Count, NonNegative
from imbalance_vlm.data.prepare import resolve_templates
from imbalance_vlm.errors import InputError

AnchorNames = Literal["base", "novel", "external"]
AnchorTarget = Literal["template", "ensemble", "openai"]
AnchorDistance = Literal["cos", "l1", "mean_l1", "l2"]

EXTERNAL = tuple(
    int(label)
    for label in (
        "717 988 619 257 327 691 760 993 929 553 123 625 741 742 642 851 653 925 634 818 490 769 501 832 994 338 "
        "401 455 430 916 138 31 537 247 533 530 937 855 762 874 604 340 838 888 892 128 719 858 20 336 670 699 751 "
        "588 346 913 465 356 406 476 189 674 801 147 826 146 581 0 135 285 433 420 449 418 438 206 866 175 370 463 "
        "930 72 923 615 242 571 254 139 985 310 121 958 137 55 443 692 523 863 59 186"
    ).split()
)
"""The ImageNet classes, in label order, whose names are the external ones: the first 100 of the order in [1]."""


def text_distance(learned: Tensor, frozen: Tensor, distance: AnchorDistance) -> Tensor:
    """Distance of each row, (M, d), (M, d) -> (M,)."""
    if distance == "cos":
        return 1 - F.cosine_similarity(learned, frozen, dim=-1)
    difference = learned - frozen
    if distance == "l2":
        return difference.square().sum(-1)
    return difference.abs().sum(-1) if distance == "l1" else difference.abs().mean(-1)


def target_templates(templates: Sequence[str], target: AnchorTarget) -> Sequence[str]:
    """The sentences that the frozen features are averaged over.

    Args:
        templates: the dataset's own.
        target: the dataset's first ("template"), all of them ("ensemble"), or CLIP's 80 for ImageNet followed by the
            dataset's first ("openai").
    """
    if target == "openai":
        return (*resolve_templates("openai"), *templates[:1])
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
            sentences ("ensemble") or over CLIP's 80 for ImageNet and the dataset's first ("openai").
        distance: "cos", "l1", "mean_l1" or "l2".
        weight: factor of the term in the objective.
        external: number of external names; those that are too long for the text tower are passed over.

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
    if names == "novel":
        other_names = _novel_names(text)
    else:
        other_names = external_names(text, external)
        templates = templates if target != "openai" else templates[:-1]  # as in [1], which treats them as ImageNet's
    return TextAnchor(text.learned(other_names), text.frozen(other_names, templates), distance=distance, weight=weight)


def _novel_names(text: RunText) -> Sequence[str]:
    if not text.novel_names:
        raise InputError(
            "regularizer 'text_anchor' with names 'novel' needs classes that are tested but not trained, got none; "
            "set data.classes to base, or names to external"
        )
    return text.novel_names


def external_names(text: RunText, count: int) -> list[str]:
    """The first `count` names of `EXTERNAL`, and then of the other ImageNet classes, that fit into the text tower.

    Raises:
        InputError: `count` is larger than the number of such names.
    """
    from open_clip import IMAGENET_CLASSNAMES

    fitting = text.fitting([IMAGENET_CLASSNAMES[label] for label in dict.fromkeys((*EXTERNAL, *range(1000)))])
    if len(fitting) < count:
        raise InputError(
            f"`external` of regularizer 'text_anchor' must be at most {len(fitting)}, the number of ImageNet names "
            f"that are not too long for the text tower, got {count}"
        )
    return fitting[:count]


def _no_learned_text() -> InputError:
    return InputError(
        "regularizer 'text_anchor' needs text features that are learned, and this run learns none; set tuning to a "
        "method that does, such as {name: prompt, method: coop}"
    )
