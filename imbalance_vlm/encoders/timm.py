"""Any timm backbone as an image-only encoder: `encoder: {name: timm:resnet50, pretrained: true}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from imbalance_vlm.data.loading import Transform
from imbalance_vlm.encoders.base import autocast, file_fingerprint, fixed_start, weights_fingerprint
from imbalance_vlm.encoders.formats import differences
from imbalance_vlm.encoders.hub import download_command, require_repository
from imbalance_vlm.errors import InputError, did_you_mean


class TimmEncoder(nn.Module):
    """A timm backbone without its classifier. It has no text tower; asking it for one is refused in words.

    Args:
        model: a timm model made with num_classes=0.
        transform: the model's evaluation preprocessing.
        name, pretrained: what the result tables show.
        fingerprint: identifies the weights.
        precision: "fp32", or "bf16" for autocast.
    """

    logit_scale = 1.0
    pretrain_pairs: int | None = None
    final_norm = True

    def __init__(
        self, model: nn.Module, transform: Transform, name: str, pretrained: str, fingerprint: str, precision: str
    ) -> None:
        super().__init__()
        self.module = model.eval()
        self.transform = transform
        self.name = name
        self.pretrained = pretrained
        self.fingerprint = fingerprint
        self.precision = precision

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def width(self, kind: str) -> int:
        """Width of the image features: the pooled ones may be wider than the tokens (a conv head after pooling)."""
        pooled = int(getattr(self.module, "head_hidden_size", None) or self.module.num_features)  # type: ignore[arg-type]
        return int(self.module.num_features) if kind == "tokens" else pooled  # type: ignore[arg-type]

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        """Pooled features (B, w), or tokens (B, T, w) with the class token, or the mean in its place, first."""
        with autocast(self.device, self.precision):
            features = self.module.forward_features(pixels)  # type: ignore[operator]
            if kind == "tokens":
                return as_tokens(self.module, features).float()
            return self.module.forward_head(features, pre_logits=True).float()  # type: ignore[operator]

    def _refuse_text(self) -> NoReturn:
        raise InputError(
            f"encoder '{self.name}' is an image backbone without a text tower: zero-shot classification, prompts and "
            "init 'text' need an open_clip model"
        )

    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        self._refuse_text()

    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        self._refuse_text()


def as_tokens(trunk: Any, features: Tensor) -> Tensor:
    """What a timm backbone's forward_features gives as (B, T, w), the class token, or the mean in its place, first."""
    if features.ndim == 4:  # a feature map, (B, C, H, W), or (B, H, W, C) in hierarchical transformers
        channels_last = features.shape[-1] == trunk.num_features
        features = features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    if getattr(trunk, "num_prefix_tokens", 0):
        return features
    return torch.cat([features.mean(1, keepdim=True), features], dim=1)


def timm_encoder(
    model: str,
    *,
    pretrained: bool | str = True,
    precision: Literal["fp32", "bf16"] = "fp32",
    features: Literal["embedding", "class_token"] = "embedding",
) -> TimmEncoder:
    """A timm backbone.

    Args:
        model: "timm:NAME", NAME as timm.list_models() shows it.
        pretrained: true for timm's own weights, the path of a local checkpoint, or "random".
        precision: "fp32", or "bf16" for autocast.
        features: the pooled features, under either name (a timm backbone has no projection).

    Raises:
        InputError: an unknown model, a missing file, weights of another architecture, or weights that would have to be
            fetched and cannot be.
    """
    import timm
    from timm.data import create_transform, resolve_model_data_config

    name = model.removeprefix("timm:")
    if not timm.is_model(name):
        raise InputError(f"unknown timm model {name!r}.{did_you_mean(name, timm.list_models())}")
    path = checkpoint_path(pretrained)
    if pretrained is True:
        _check_reachable(name)
    try:
        with fixed_start():
            net = timm.create_model(name, pretrained=pretrained is True, num_classes=0)
        if path:
            _load(net, path, name)
    except InputError:
        raise
    except Exception as error:  # a damaged file raises one of a dozen types
        raise InputError(
            f"the weights {str(path or pretrained)!r} of 'timm:{name}' could not be had: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    return TimmEncoder(
        net,
        transform,
        name=model,
        pretrained=str(pretrained),
        fingerprint=encoder_fingerprint(model, pretrained) or weights_fingerprint(net),
        precision=precision,
    )


def encoder_fingerprint(model: str, pretrained: bool | str) -> str:
    """Identity of the weights without loading them; "" when only the weights themselves can tell."""
    path = checkpoint_path(pretrained)
    if path:
        return file_fingerprint(path)
    return model if pretrained is True else ""


def checkpoint_path(pretrained: bool | str) -> Path | None:
    if not isinstance(pretrained, str) or pretrained == "random":
        return None
    path = Path(pretrained).expanduser()
    if not path.is_file():
        why = "a folder; name the file in it" if path.is_dir() else "no such file"
        raise InputError(f"`pretrained` must be true, 'random' or a local checkpoint, got {pretrained!r}: {why}")
    return path


def _check_reachable(name: str) -> None:
    """Refuse at once, with the command that helps, weights that would have to be fetched and cannot be.

    Raises:
        InputError: a model without weights, or weights that are neither in the cache nor within reach.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise InputError(
            f"timm keeps no weights of '{name}'; set encoder.pretrained to a local checkpoint or 'random', or choose "
            "one of timm.list_models(pretrained=True)"
        )
    if not config.hf_hub_id:
        return
    folder = config.hf_hub_id.rpartition("/")[2]
    require_repository(
        config.hf_hub_id,
        [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"],
        f"the weights of 'timm:{name}'",
        f"Where there is a network: {download_command(config.hf_hub_id)}. Copy the folder here and set "
        f"encoder.pretrained=/path/to/{folder}/model.safetensors",
    )


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Load a checkpoint whose classifier, if it has one, is left out."""
    from timm.models import load_state_dict

    found = load_state_dict(str(path), use_ema=False, weights_only=True)
    own = net.state_dict()
    classifier = net.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    layers = [classifier] if isinstance(classifier, str) else classifier
    parts = tuple(f"{layer.split('.')[0]}." for layer in layers)  # with the norms that some heads have
    found = {key: value for key, value in found.items() if key in own or not key.startswith(parts)}
    wrong = differences(own, found)
    if wrong:
        raise InputError(
            f"`pretrained` '{path}' holds weights of another architecture than '{name}': {len(wrong)} tensors do not "
            f"fit {len(own)}, such as {wrong[0]}"
        )
    net.load_state_dict(found)
