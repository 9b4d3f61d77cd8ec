"""Tuning of the image tower, with any head on its features.

`tuning: {name: peft, method: lora, rank: 4}` adds a method of this folder to the tower; `tuning: {name: full,
lr_decay: 0.7, kl: 1.0}` trains all of it, and `training.interpolation: 0.5` averages the result with the start. The
images are read at every step, by default in square crops that grow over the epochs
(`imbalance_vlm.tuning.growing_crops`).

[0] Shi, Wei, Zhou, Shao, Han, Li. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
    (LIFT: the methods and their sizes, the text-initialised cosine head, the crops)
[1] Liu, Li, Yu. Fully Fine-tuned CLIP Models are Efficient Few-Shot Learners. arXiv 2407.04003, 2024. (full
    fine-tuning that works: AdamW 5e-6, 20 epochs, KL to the frozen model, weights averaged with equal shares)
[2] Wortsman et al. Robust Fine-Tuning of Zero-Shot Models. CVPR 2022. (the average)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.regularizers.base import Regularizer
from imbalance_vlm.balancing.regularizers.distill import Distill
from imbalance_vlm.components.ranges import NonNegative, Part
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Tuning, TuningContext
from imbalance_vlm.tuning.crops import TowerCrops
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.full import Full, lr_groups
from imbalance_vlm.tuning.tower_head import TowerHead


class PeftTuning(Tuning):
    """A method in the image tower and the recipe's head on its features, both of which are trained.

    Args:
        method: adds trained modules to the tower, or selects parameters in it.
        crops: views of the training images.
    """

    reads_pixels = True

    def __init__(self, method: TowerMethod, *, crops: TowerCrops = TowerCrops()) -> None:
        self.method = method
        self.crops = crops
        self.tuned: TunedTower | None = None

    def transforms(self, context: TuningContext) -> list[View]:
        return self.crops.transforms(context)

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        """The recipe's head on the tower; it is made first, since it starts from features of the untouched tower.

        Raises:
            InputError: a tower without the parts that the method needs.
        """
        inner = plain()
        self.tuned = self.method.apply(context.encoder.module, len(context.class_names))
        return self.tower_head(context, self.tuned, inner)

    def tower_head(self, context: TuningContext, tuned: TunedTower, inner: Head) -> TowerHead:
        """The head that runs the tower."""
        return TowerHead(context.encoder, tuned, inner, context.kind)

    def base(self) -> AbstractContextManager[None]:
        return nullcontext() if self.tuned is None else self.tuned.base()

    def close(self) -> None:
        if self.tuned is not None:
            self.tuned.remove()
        self.tuned = None


class WatchedTowerHead(TowerHead):
    """A tower head that can compute the frozen tower's features of its last images."""

    images: Tensor

    def embed(self, features: Tensor) -> Tensor:
        self.images = features
        return super().embed(features)

    @torch.no_grad()
    def frozen_features(self) -> Tensor:
        with self.tuned.base():
            return self.encoder.image_features(self.images, self.kind)


class FullTuning(PeftTuning):
    """Trains the whole image tower, with options against forgetting.

    Args:
        lr_decay: factor on the learning rate from each block to the one before it; the head and the layers after the
            blocks have the recipe's rate. 1 trains all at the same rate.
        projection: whether the projection into the space of the text features, which features "embedding" pass, is
            trained too.
        kl: weight of the divergence of the class probabilities from those of the frozen model with the initial head; 0
            for none. It costs a second pass through the tower, without gradients.
        crops: views of the training images.
    """

    method: Full

    def __init__(
        self,
        *,
        lr_decay: Part = 1.0,
        projection: bool = False,
        kl: NonNegative = 0.0,
        crops: TowerCrops = TowerCrops(),
    ) -> None:
        super().__init__(Full(projection=projection, lr_decay=lr_decay), crops=crops)
        self.kl = kl
        self._terms: list[Regularizer] = []

    def tower_head(self, context: TuningContext, tuned: TunedTower, inner: Head) -> TowerHead:
        if not self.kl:
            return super().tower_head(context, tuned, inner)
        head = WatchedTowerHead(context.encoder, tuned, inner, context.kind)
        self._terms = [Distill(inner, head.frozen_features, weight=self.kl)]
        return head

    def regularizers(self, context: TuningContext) -> list[Regularizer]:
        return self._terms

    def groups(self, head: Head) -> list[dict[str, Any]]:
        if self.tuned is None or self.method.lr_decay == 1:
            return super().groups(head)
        scaled = lr_groups(self.tuned, self.method.lr_decay)
        in_tower = {id(parameter) for _, group in scaled for parameter in group}
        outside = [parameter for parameter in self.parameters(head) if id(parameter) not in in_tower]
        return [{"params": outside}, *({"params": group, "lr_scale": scale} for scale, group in reversed(scaled))]

    def close(self) -> None:
        super().close()
        self._terms = []
