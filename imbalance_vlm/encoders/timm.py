"""Any timm backbone as an image-only encoder: `encoder: {name: timm:resnet50, pretrained: true}`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from imbalance_vlm.data.preprocessing import Interpolation, Preprocessing
from imbalance_vlm.encoders.base import autocast, file_fingerprint, fixed_seed, weights_fingerprint
from imbalance_vlm.encoders.formats import differences
from imbalance_vlm.encoders.hub import download_command, require_repository
from imbalance_vlm.encoders.preprocessing import from_timm
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded, require_file


class TimmEncoder(nn.Module):
    """A timm backbone without its classifier. It has no text tower: methods that need one raise an InputError.

    Args:
        model: a timm model made with num_classes=0.
        preprocessing: the model's evaluation preprocessing.
        name, pretrained: shown in result tables.
        fingerprint: identifies the weights.
        precision: "fp32", or "bf16" for autocast.
    """

    logit_scale = 1.0
    pretrain_pairs: int | None = None
    samples_seen: int | None = None
    final_norm = True

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        name: str,
        pretrained: str,
        fingerprint: str,
        precision: str,
    ) -> None:
        super().__init__()
        self.module = model.eval()
        self.preprocessing = preprocessing
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
        """Features of preprocessed images.

        Args:
            pixels: (B, 3, H, W).
            kind: "tokens", or anything else for the pooled features; see `imbalance_vlm.encoders.base.KINDS`.

        Returns:
            (B, w) or (B, T, w), float32; see `as_tokens`.
        """
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
    """Bring the output of a timm backbone's forward_features to (B, T, w).

    The class token comes first, or the mean of the tokens where there is none.
    """
    if features.ndim == 4:  # a feature map, (B, C, H, W), or (B, H, W, C) in hierarchical transformers
        channels_last = features.shape[-1] == trunk.num_features
        features = features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    if getattr(trunk, "num_prefix_tokens", 0):
        return features
    return torch.cat([features.mean(1, keepdim=True), features], dim=1)


@dataclass(frozen=True)
class TimmSpec:
    """A timm backbone that is not loaded yet.

    Args:
        name: "timm:NAME", NAME as timm.list_models() shows it.
        pretrained: true for timm's own weights, the path of a local checkpoint, or "random".
        precision: "fp32", or "bf16" for autocast.
        interpolation: PIL's filter that scales images, in place of the model's own; null for the latter.
        features: the pooled features, under either name (a timm backbone has no projection).
    """

    name: str
    _: KW_ONLY
    pretrained: bool | str = True
    precision: Literal["fp32", "bf16"] = "fp32"
    interpolation: Interpolation | None = None
    features: Literal["embedding", "class_token"] = "embedding"

    def identity(self) -> str:
        """Identifies the weights without loading them.

        Raises:
            InputError: a missing file.
        """
        return self._fingerprint() or f"random:{self.name}"  # the seed is fixed

    def build(self) -> TimmEncoder:
        """The backbone with its weights.

        Raises:
            InputError: an unknown model, a missing file, weights of another architecture, or weights that would have to
                be downloaded and cannot be.
        """
        import timm
        from timm.data import resolve_model_data_config

        model_name = self.name.removeprefix("timm:")
        if not timm.is_model(model_name):
            raise InputError(f"unknown timm model {model_name!r}.{did_you_mean(model_name, timm.list_models())}")
        checkpoint = checkpoint_path(self.pretrained)
        if self.pretrained is True:
            _require_download(model_name)
        try:
            with fixed_seed():
                model = timm.create_model(model_name, pretrained=self.pretrained is True, num_classes=0)
            if checkpoint:
                _load(model, checkpoint, model_name)
            preprocessing = from_timm(resolve_model_data_config(model)).with_filter(self.interpolation)
        except InputError:
            raise
        except Exception as error:  # a damaged file raises one of a dozen types
            raise InputError(
                f"the weights {str(checkpoint or self.pretrained)!r} of '{self.name}' could not be loaded: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        return TimmEncoder(
            model,
            preprocessing,
            name=self.name,
            pretrained=str(self.pretrained),
            fingerprint=self._fingerprint() or weights_fingerprint(model),
            precision=self.precision,
        )

    def _fingerprint(self) -> str:
        """Identifies weights from timm or from a file; "" for random ones."""
        checkpoint = checkpoint_path(self.pretrained)
        if checkpoint:
            return file_fingerprint(checkpoint)
        return self.name if self.pretrained is True else ""


def checkpoint_path(pretrained: bool | str) -> Path | None:
    """The file that `pretrained` names, None for timm's own or random weights.

    Raises:
        InputError: no such file.
    """
    if not isinstance(pretrained, str) or pretrained == "random":
        return None
    return require_file(expanded(pretrained, "`pretrained`"), "`pretrained`, where it is not true or 'random',")


def _require_download(name: str) -> None:
    """Refuse weights that would have to be downloaded and cannot be, before timm tries.

    Raises:
        InputError: a model without weights, or weights neither in the cache nor within reach, with the command that
            downloads them.
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
    """Load a checkpoint, without its classifier."""
    from timm.models import load_state_dict

    state = load_state_dict(str(path), use_ema=False, weights_only=True)
    expected = net.state_dict()
    classifier = net.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    layers = [classifier] if isinstance(classifier, str) else classifier
    prefixes = tuple(f"{layer.split('.')[0]}." for layer in layers)  # some classifiers have a norm of their own
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(prefixes)}
    wrong = differences(expected, state)
    if wrong:
        raise InputError(
            f"`pretrained` '{path}' holds weights of another architecture than '{name}': {len(wrong)} tensors do not "
            f"fit {len(expected)}, such as {wrong[0]}"
        )
    net.load_state_dict(state)
