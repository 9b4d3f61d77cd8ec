"""The preprocessing of open_clip's and timm's models, from the configurations that these libraries keep.

[1] github.com/mlfoundations/open_clip, src/open_clip/transform.py (image_transform)
[2] github.com/huggingface/pytorch-image-models, timm/data/transforms_factory.py (transforms_imagenet_eval)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_vlm.data.preprocessing import Preprocessing, Resize
from imbalance_vlm.errors import InputError, one_of

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

_OPEN_CLIP_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
_TIMM_KEYS = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
_TIMM_MODES: dict[str, Resize] = {"center": "shortest", "squash": "squash", "border": "longest"}


def from_open_clip(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that open_clip describes by `model.visual.preprocess_cfg`.

    Raises:
        InputError: a configuration that open_clip's evaluation transform does not know.
    """
    _check_keys("open_clip", config, _OPEN_CLIP_KEYS)
    resize: Resize = config.get("resize_mode") or "shortest"
    interpolation: Any = config.get("interpolation") or "bicubic"
    if config.get("mode", "RGB") != "RGB" or interpolation not in ("bicubic", "bilinear", "random"):
        raise InputError(
            "open_clip's preprocessing must be in RGB, with interpolation 'bicubic', 'bilinear' or 'random', got "
            f"{dict(config)}"
        )
    size = _pair(config["size"])
    # [1] uses bicubic for "random", and for an input that is not square, whatever the configuration says.
    if interpolation == "random" or (resize == "shortest" and size[0] != size[1]):
        interpolation = "bicubic"
    fill = (int(config.get("fill_color") or 0),) * 3 if resize == "longest" else (0, 0, 0)
    mean, std = _channels(config.get("mean") or OPENAI_MEAN), _channels(config.get("std") or OPENAI_STD)
    return Preprocessing(size, mean, std, resize, interpolation, fill=fill)


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that timm describes by `timm.data.resolve_model_data_config(model)`.

    Raises:
        InputError: a configuration that timm's evaluation transform does not know, or one of other than 3 channels.
    """
    _check_keys("timm", config, _TIMM_KEYS)
    channels, *sides = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if channels != 3 or mode not in _TIMM_MODES:
        raise InputError(
            f"timm's preprocessing must have 3 channels and `crop_mode` {one_of(_TIMM_MODES)}, got {dict(config)}"
        )
    size, mean = _pair(sides), _channels(config["mean"])
    height, width = (math.floor(side / (config.get("crop_pct") or 0.875)) for side in size)  # the default of [2]
    red, green, blue = (round(255 * value) for value in mean)
    return Preprocessing(
        size,
        mean,
        _channels(config["std"]),
        _TIMM_MODES[mode],
        config.get("interpolation") or "bilinear",
        resized=(height, width),
        fill=(red, green, blue) if mode == "border" else (0, 0, 0),
    )


def _check_keys(library: str, config: Mapping[str, Any], keys: set[str]) -> None:
    unknown = sorted(set(config) - keys)
    if unknown:
        raise InputError(
            f"{library}'s preprocessing must be described by {', '.join(sorted(keys))}, got also {', '.join(unknown)}; "
            f"this version of {library} prepares images in a way that is not known here"
        )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return height, width


def _channels(values: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (values,) * 3 if isinstance(values, (int, float)) else values
    return float(red), float(green), float(blue)
