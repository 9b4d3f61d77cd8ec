"""The views that each setting of crops gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imbalance_vlm import create_encoder
from imbalance_vlm.encoders.features import CroppedView
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import CachedCrops, PixelCrops, TowerCrops
from imbalance_vlm.tuning.growing_crops import SquareCrop


@pytest.fixture
def context(tiny_clip: str) -> TuningContext:
    encoder = create_encoder(tiny_clip)
    cpu = torch.device("cpu")
    return TuningContext(encoder, "embedding", ("a", "b"), (), ("{}",), cpu, 3, 0, True, encoder.text_features)


def test_growing_crops_are_squares_with_one_view_per_epoch(context: TuningContext) -> None:
    views = TowerCrops(min_scale=0.2).transforms(context)
    assert [round(view.min_scale, 3) for view in views if isinstance(view, SquareCrop)] == [0.2, 0.307, 1.0]


@pytest.mark.parametrize(
    ("crops", "views"),
    [
        (TowerCrops(crops="random"), 3),
        (TowerCrops(crops="none"), 0),
        (PixelCrops(), 3),
        (PixelCrops(views=2), 2),
        (PixelCrops(views=0), 0),
        (CachedCrops(), 4),
        (CachedCrops(views=0), 0),
    ],
)
@pytest.mark.parametrize("flips", [True, False])
def test_random_crops_are_as_many_as_set_or_one_per_epoch(
    crops: Any, views: int, flips: bool, context: TuningContext
) -> None:
    transforms = crops.transforms(TuningContext(**(vars(context) | {"flips": flips})))
    if views == 0:
        assert transforms == [context.encoder.preprocessing]
        return
    assert len(transforms) == views
    for view in transforms:
        assert isinstance(view, CroppedView)
        assert (view.flips, view.min_scale) == (flips, 0.08)
