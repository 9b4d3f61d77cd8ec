"""The preprocessing of every configuration against the transform that its own library makes of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform

from imbalance_vlm import InputError
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.preprocessing import from_open_clip, from_timm

SHAPES = [(60, 40), (17, 90), (24, 24), (9, 12), (16, 24), (101, 33)]

OPEN_CLIP: dict[str, Any] = {
    "size": 16,
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
TIMM: dict[str, Any] = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def assert_same(preprocessing: Preprocessing, transform: Any) -> None:
    for width, height in SHAPES:
        image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
        assert torch.equal(preprocessing(image), transform(image)), (width, height)


@pytest.mark.parametrize("size", [16, (24, 24), (16, 24), (24, 17)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_open_clip(size: Any, resize_mode: str, interpolation: str) -> None:
    for fill in (0, 7):
        changes = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill}
        config = OPEN_CLIP | changes
        assert_same(from_open_clip(config), image_transform_v2(PreprocessCfg(**config), is_train=False))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_open_clip_on_other_modes_than_rgb(mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).convert(mode)
    transform = image_transform_v2(PreprocessCfg(**OPEN_CLIP), is_train=False)
    assert torch.equal(from_open_clip(OPEN_CLIP)(image), transform(image))


def test_open_clips_defaults() -> None:
    assert_same(from_open_clip({"size": 20}), image_transform_v2(PreprocessCfg(20), is_train=False))


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 17)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border", None])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_timm(size: tuple[int, int], crop_mode: str | None, interpolation: str) -> None:
    for crop_pct in (0.6, 0.875, 0.95, 1.0, 1.1):
        changes = {"input_size": (3, *size), "crop_mode": crop_mode, "interpolation": interpolation}
        config = TIMM | changes | {"crop_pct": crop_pct}
        assert_same(from_timm(config), create_transform(**config, is_training=False))


def test_different_configurations_have_different_keys() -> None:
    sizes, modes, filters = (16, 24, (16, 24)), ("shortest", "longest", "squash"), ("bicubic", "bilinear")
    keys = [
        from_open_clip(OPEN_CLIP | {"size": size, "resize_mode": mode, "interpolation": interpolation}).key()
        for size, mode, interpolation in itertools.product(sizes, modes, filters)
    ]
    keys += [
        from_timm(TIMM | {"crop_pct": crop_pct, "crop_mode": mode}).key()
        for crop_pct, mode in itertools.product((0.8, 0.9), ("center", "squash", "border"))
    ]
    # open_clip scales the shorter side to an input that is not square by "bicubic" alone.
    assert len(set(keys)) == len(keys) - 1


@pytest.mark.parametrize(
    ("make", "config", "words"),
    [
        (from_open_clip, OPEN_CLIP | {"resize_mode": "crop"}, "`resize` must be 'shortest', 'longest' or 'squash'"),
        (from_open_clip, OPEN_CLIP | {"interpolation": "lanczos"}, "'bicubic', 'bilinear' or 'random'"),
        (from_open_clip, OPEN_CLIP | {"mode": "L"}, "must be in RGB"),
        (from_open_clip, OPEN_CLIP | {"gamma": 2}, "got also gamma"),
        (from_timm, TIMM | {"crop_mode": "five"}, "`crop_mode` 'center', 'squash' or 'border'"),
        (from_timm, TIMM | {"input_size": (1, 16, 16)}, "must have 3 channels"),
        (from_timm, TIMM | {"interpolation": "random"}, "`interpolation` must be 'nearest'"),
        (from_timm, TIMM | {"crop_border_pixels": 4}, "got also crop_border_pixels"),
    ],
)
def test_what_cannot_be_expressed_is_refused(make: Any, config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(config)
