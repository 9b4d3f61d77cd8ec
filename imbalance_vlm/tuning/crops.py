"""Settings of the crops that a tuning trains on, and the transforms that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imbalance_vlm.components.ranges import Natural, Part
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.growing_crops import growing_crops


@dataclass(frozen=True, kw_only=True)
class CachedCrops(SettingGroup):
    """Views of the training images for a frozen image tower; the features of each are computed once.

    Args:
        views: number k of random crops of each image (also mirrored if the dataset allows it), of which epoch e uses
            crop e mod k; 0 for the model's own view.
        min_scale: smallest share of the image that a crop shows, above 0 and at most 1.
    """

    views: Natural = 4
    min_scale: Part = 0.08

    def transforms(self, context: TuningContext) -> list[View]:
        return view_transforms(context.encoder, self.views, self.min_scale, context.flips)


@dataclass(frozen=True, kw_only=True)
class PixelCrops(SettingGroup):
    """Views of the training images for an image tower that runs at every step.

    Args:
        views: number k of random crops of each image (also mirrored if the dataset allows it), of which epoch e uses
            crop e mod k; null for a new crop in every epoch, 0 for the model's own view.
        min_scale: smallest share of the image that a crop shows, above 0 and at most 1.
    """

    views: Natural | None = None
    min_scale: Part = 0.08

    def transforms(self, context: TuningContext) -> list[View]:
        views = context.epochs if self.views is None else self.views
        return view_transforms(context.encoder, views, self.min_scale, context.flips)


@dataclass(frozen=True, kw_only=True)
class TowerCrops(SettingGroup):
    """Views of the training images for an image tower that is trained.

    Args:
        crops: "growing" for squares that grow over the epochs; "random" for a new crop of varying shape in every epoch
            (also mirrored if the dataset allows it); "none" for the model's own view.
        min_scale: smallest share of the image that a crop shows, above 0 and at most 1; with "growing" crops, in the
            first epoch.
    """

    crops: Literal["growing", "random", "none"] = "growing"
    min_scale: Part = 0.08

    def transforms(self, context: TuningContext) -> list[View]:
        if self.crops == "growing":
            return growing_crops(context.encoder.preprocessing, context.epochs, context.seed, min_scale=self.min_scale)
        views = context.epochs if self.crops == "random" else 0
        return view_transforms(context.encoder, views, self.min_scale, context.flips)
