"""Tuning the image tower, as a recipe asks for it.

`tuning: {name: peft, method: lora, rank: 4}` brings one of this folder's methods into the tower;
`tuning: {name: full, lr_decay: 0.7, kl: 1.0}` trains all of it, and `training.interpolation: 0.5` averages the result
with where it started. Images flow through the loop, in square
crops that show more and more of them (`imbalance_vlm.tuning.minimalist`). Any head stands behind the tower: on pooled
features or on all tokens.

[0] Shi, Wei, Zhou, Shao, Han, Li. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
    (LIFT: the methods and their sizes, the text-initialised cosine head, the crops)
[1] Liu, Li, Yu. Fully Fine-tuned CLIP Models are Efficient Few-Shot Learners. arXiv 2407.04003, 2024. (full
    fine-tuning that works: AdamW 5e-6, 20 epochs, KL to the frozen model, weights averaged half-way)
[2] Wortsman et al. Robust Fine-Tuning of Zero-Shot Models. CVPR 2022. (the average)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from imbalance_vlm.balancing.regularizers.base import Regularizer
from imbalance_vlm.balancing.regularizers.distill import Distill
from imbalance_vlm.components.ranges import NonNegative, Part
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Task, Tuning
from imbalance_vlm.tuning.minimalist import minimalist_views
from imbalance_vlm.tuning.peft.base import Method, Tuned
from imbalance_vlm.tuning.peft.full import Full, lr_groups
from imbalance_vlm.tuning.tuned_tower import TunedTower

Crops = Literal["minimalist", "random", "none"]


class PeftTuning(Tuning):
    """A method in the image tower, and the recipe's head behind it; both are trained.

    Args:
        method: what is added to the tower, or chosen in it.
        crops: what the training images show: "minimalist", squares that grow over the epochs; "random", a new crop
            of varying shape at every epoch (mirrored too, where the dataset's classes survive that); "none", the
            model's own view.
        min_scale: smallest share of the image that a crop shows; of "minimalist" ones, in the first epoch.
    """

    reads_pixels = True

    def __init__(self, method: Method, *, crops: Crops = "minimalist", min_scale: Part = 0.08) -> None:
        self.method = method
        self.crops = crops
        self.min_scale = min_scale
        self.tuned: Tuned | None = None

    def transforms(self, task: Task) -> list[View]:
        base = task.encoder.preprocessing
        if self.crops == "minimalist":
            return minimalist_views(base, task.epochs, task.seed, min_scale=self.min_scale)
        return view_transforms(task.encoder, task.epochs if self.crops == "random" else 0, self.min_scale, task.flips)

    def head(self, task: Task, plain: Callable[[], Head]) -> Head:
        """The recipe's head behind the tower. It is made first: its start comes from the untouched tower.

        Raises:
            InputError: a tower without the parts that the method needs.
        """
        inner = plain()
        self.tuned = self.method.apply(task.encoder.module, len(task.class_names))
        return self.around(task, self.tuned, inner)

    def around(self, task: Task, tuned: Tuned, inner: Head) -> TunedTower:
        """The head that runs the tower."""
        return TunedTower(task.encoder, tuned, inner, task.kind)

    def base(self) -> AbstractContextManager[None]:
        return nullcontext() if self.tuned is None else self.tuned.base()

    def close(self) -> None:
        if self.tuned is not None:
            self.tuned.remove()
        self.tuned = None


class WatchedTower(TunedTower):
    """A tuned tower that can say what the untouched one makes of the images it saw last."""

    images: Tensor

    def embed(self, features: Tensor) -> Tensor:
        self.images = features
        return super().embed(features)

    @torch.no_grad()
    def frozen_features(self) -> Tensor:
        with self.tuned.base():
            return self.encoder.image_features(self.images, self.kind)


class FullTuning(PeftTuning):
    """Trains the whole image tower, with what keeps it from forgetting.

    Args:
        lr_decay: the learning rate's factor from each block to the one before it; the head, and what comes after the
            blocks, have the recipe's rate. 1 trains all alike.
        projection: also trains the projection into the space of the text features, which features "embedding" pass.
        kl: weight of the divergence of the class probabilities from those of the frozen model under the head's start;
            0 for none. It costs a second pass through the tower, without gradients.
        crops: what the training images show: "minimalist", squares that grow over the epochs; "random", a new crop
            of varying shape at every epoch (mirrored too, where the dataset's classes survive that); "none", the
            model's own view.
        min_scale: smallest share of the image that a crop shows; of "minimalist" ones, in the first epoch.
    """

    def __init__(
        self,
        *,
        lr_decay: Part = 1.0,
        projection: bool = False,
        kl: NonNegative = 0.0,
        crops: Crops = "minimalist",
        min_scale: Part = 0.08,
    ) -> None:
        super().__init__(Full(projection=projection, lr_decay=lr_decay), crops=crops, min_scale=min_scale)
        self.lr_decay = lr_decay
        self.kl = kl
        self._terms: list[Regularizer] = []

    def around(self, task: Task, tuned: Tuned, inner: Head) -> TunedTower:
        if not self.kl:
            return super().around(task, tuned, inner)
        tower = WatchedTower(task.encoder, tuned, inner, task.kind)
        self._terms = [Distill(inner, tower.frozen_features, weight=self.kl)]
        return tower

    def regularizers(self, task: Task) -> list[Regularizer]:
        return self._terms

    def groups(self, head: Head) -> list[dict[str, Any]]:
        if self.tuned is None or self.lr_decay == 1:
            return super().groups(head)
        scaled = lr_groups(self.tuned, self.lr_decay)
        in_tower = {id(parameter) for _, group in scaled for parameter in group}
        rest = [parameter for parameter in self.parameters(head) if id(parameter) not in in_tower]
        return [{"params": rest}, *({"params": group, "lr_scale": scale} for scale, group in reversed(scaled))]

    def close(self) -> None:
        super().close()
        self._terms = []
