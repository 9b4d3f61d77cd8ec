"""TextAnchor: learned text features stay near those of the untouched tower. One term of five papers.

[0] Yao, Zhang, Xu. Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization. CVPR 2023. (KgCoOp)
    Ma, Liu, Deng, Xie, Dong, Xu. Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models.
    TCSVT 2023. (NFL, the novel feature learner)
    Khattak, Wasim, Naseer, Khan, Yang, Khan. Self-regulating Prompts: Foundational Model Adaptation without Forgetting.
    ICCV 2023. (PromptSRC)
[1] github.com/htyao89/KgCoOp, trainers/kgcoop.py; github.com/machengcheng2016/Subspace-Prompt-Learning;
    github.com/muzairkhattak/PromptSRC, trainers/promptsrc.py

    L = 1/M sum_i dist(g(v, name_i), w_i),   w_i: the frozen feature of name_i in one sentence, or in the mean of many

    cos       1 - cos(t, w)
    l1        sum_j |t_j - w_j|
    mean_l1   1/d sum_j |t_j - w_j|
    l2        sum_j (t_j - w_j)^2, which for unit features is 2 (1 - cos)

    KgCoOp                 names base,              cos,     weight 8
    NFL                    names novel or external, cos,     weight 1
    PromptSRC's text term  names base,              mean_l1, weight 25
    CPT's stabiliser       names base,              l1,      weight .10

Novel names are those of classes that are tested and never trained: their names are used, their images are not. External
ones are drawn from ImageNet's, of classes that are neither trained nor tested here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, Seen
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


def templates_of(templates: Sequence[str], target: AnchorTarget) -> Sequence[str]:
    """The sentences that an anchor is made of: the first of the dataset's, or all."""
    return templates if target == "ensemble" else templates[:1]


class TextAnchor(Regularizer):
    """Distance of learned text features to frozen ones, mean over the names.

    `imbalance_vlm.tuning.prompt.anchors.anchor_for` makes one from a recipe's section.

    Args:
        learned: gives the features (M, d) of other names under the present prompt; None for those of the classes that
            are trained, which the head has computed anyway.
        frozen: (M, d) what to stay near; None for the frozen features of the classes that are trained.
        names: whose text features: of the classes that are trained ("base"), of those that are only tested ("novel"),
            or of others ("external").
        target: the frozen feature is that of the dataset's first sentence ("template") or the mean of all ("ensemble").
        distance: "cos", "l1", "mean_l1" or "l2".
        weight: of the term beside the loss.
        external: how many external names are drawn.

    Raises:
        InputError: other names without their features, a head that learns no text, or features of other shapes.
    """

    frozen: Tensor | None

    def __init__(
        self,
        learned: Callable[[], Tensor] | None = None,
        frozen: Tensor | None = None,
        *,
        names: AnchorNames = "base",
        target: AnchorTarget = "ensemble",
        distance: AnchorDistance = "cos",
        weight: NonNegative = 1.0,
        external: Count = 100,
    ) -> None:
        super().__init__(weight)
        if names != "base" and (learned is None or frozen is None):
            raise InputError(
                f"a text anchor for '{names}' names needs `learned` and `frozen`, the features of those names; make it "
                "with imbalance_vlm.tuning.prompt.anchors.anchor_for, or set names to base"
            )
        self.learned = learned
        self.register_buffer("frozen", None if frozen is None else frozen.detach().clone(), persistent=False)
        self.names = names
        self.target = target
        self.distance: AnchorDistance = distance
        self.external = external

    def forward(self, seen: Seen) -> Tensor:
        learned = seen.text if self.learned is None else self.learned()
        frozen = seen.frozen_text if self.frozen is None else self.frozen
        if learned is None or frozen is None:
            raise InputError(
                "a text anchor needs text features that are learned, and this head learns none; set tuning to a method "
                "that does, such as {name: prompt, method: coop}"
            )
        if learned.shape != frozen.shape:
            raise InputError(
                f"`frozen` must have the shape of the learned text features, {tuple(learned.shape)}, "
                f"got {tuple(frozen.shape)}"
            )
        return text_distance(learned, frozen.to(learned), self.distance).mean()
