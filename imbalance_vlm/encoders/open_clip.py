"""Any open_clip model as an encoder: by name and tag, by a local weights file or folder, or from a local directory.

Local weights may be in any format that `imbalance_vlm.encoders.formats` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.data.preprocessing import Interpolation, Preprocessing
from imbalance_vlm.encoders.architectures import fill, has_transformers, quiet, text_config
from imbalance_vlm.encoders.base import autocast, file_fingerprint, fixed_seed, weights_fingerprint
from imbalance_vlm.encoders.formats import read_weights
from imbalance_vlm.encoders.locations import CONFIG, Location, locate, require_download
from imbalance_vlm.encoders.overrides import overrides_for
from imbalance_vlm.encoders.preprocessing import from_open_clip
from imbalance_vlm.encoders.pretraining import pretrain_pairs, samples_seen
from imbalance_vlm.encoders.timm import as_tokens
from imbalance_vlm.encoders.tokenizers import check_distinct, load_tokenizer, sentence
from imbalance_vlm.errors import InputError


class OpenClipEncoder(nn.Module):
    """An open_clip model with its own preprocessing.

    Args:
        model: an open_clip model with an image and a text tower.
        preprocessing: the model's evaluation preprocessing.
        tokenizer: the model's tokenizer.
        name, pretrained, pretrain_pairs, samples_seen: shown in result tables.
        fingerprint: identifies the weights.
        precision: "fp32", or "bf16" for autocast.
        final_norm: whether the tokens are taken after the image tower's final norm.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        tokenizer: Any,
        name: str,
        pretrained: str,
        pretrain_pairs: int | None,
        fingerprint: str,
        precision: str = "fp32",
        final_norm: bool = True,
        samples_seen: int | None = None,
    ) -> None:
        super().__init__()
        self.module = model.eval()
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.name = name
        self.pretrained = pretrained
        self.pretrain_pairs = pretrain_pairs
        self.samples_seen = samples_seen
        self.fingerprint = fingerprint
        self.precision = precision
        self.final_norm = final_norm
        self._widths: dict[str, int] = {}

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def logit_scale(self) -> float:
        return float(self.module.logit_scale.detach().exp())  # type: ignore[operator]

    def width(self, kind: str) -> int:
        """Width of the image features of this kind."""
        if kind not in self._widths:
            pixels = torch.zeros(1, 3, *self.preprocessing.size, device=self.device)
            with torch.no_grad():
                self._widths[kind] = self.image_features(pixels, kind).shape[-1]
        return self._widths[kind]

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        """Features of preprocessed images, not normalised.

        Args:
            pixels: (B, 3, H, W).
            kind: see `imbalance_vlm.encoders.base.KINDS`.

        Returns:
            (B, d), (B, w) or (B, T, w), float32.

        Raises:
            InputError: a kind of features that the image tower does not have.
        """
        with autocast(self.device, self.precision):
            if kind == "embedding":
                return self.module.encode_image(pixels).float()  # type: ignore[operator]
            if kind == "class_token":
                return self._class_token(pixels).float()
            return self._tokens(pixels, self.final_norm).float()  # (B, T, w)

    def _tokens(self, pixels: Tensor, final_norm: bool = True) -> Tensor:
        visual: Any = self.module.visual
        if hasattr(visual, "trunk"):
            return self._trunk_tokens(visual.trunk, pixels, final_norm)
        if not hasattr(visual, "class_embedding") or not hasattr(visual, "ln_post"):
            raise InputError(
                f"features 'tokens' need an image tower that makes tokens, encoder '{self.name}' is a "
                f"{type(visual).__name__}; use features 'embedding' and a head that reads them"
            )
        if final_norm and getattr(visual, "attn_pool", None) is not None:
            raise InputError(
                f"features 'tokens' need a final norm on the tokens, encoder '{self.name}' applies its norm after "
                "pooling them by attention; set encoder.final_norm to false, or use features 'embedding'"
            )
        layers = visual.forward_intermediates(
            pixels,
            indices=1,
            normalize_intermediates=final_norm,  # without the norm the tokens have a very different scale
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([layers["image_intermediates_prefix"][-1], layers["image_intermediates"][-1]], dim=1)

    def _trunk_tokens(self, trunk: Any, pixels: Tensor, final_norm: bool) -> Tensor:
        """All tokens of a tower from timm, the class token first, or the mean of the tokens where there is none."""
        if not final_norm:
            raise InputError(
                f"encoder.final_norm must be true for encoder '{self.name}', whose image tower comes from timm and "
                "gives its tokens after the norm, got false"
            )
        return as_tokens(trunk, trunk.forward_features(pixels))

    def _class_token(self, pixels: Tensor) -> Tensor:
        visual = self.module.visual
        if hasattr(visual, "trunk") or getattr(visual, "pool_type", "tok") != "tok":
            raise InputError(
                f"features 'class_token' need an image tower that classifies by a class token, encoder '{self.name}' "
                "pools in another way; use features 'embedding'"
            )
        return self._tokens(pixels)[:, 0]

    def text_features(
        self,
        class_names: Sequence[str],
        templates: Sequence[str],
        batch_size: int = 512,
        *,
        normalize_each: bool = True,
    ) -> Tensor:
        """Unit text features of class names, each the renormalised mean over the templates' unit features.

        Source: prompt ensembling in embedding space, Radford et al., ICML 2021, section 3.1.4.

        Args:
            class_names: one per class; an underscore is read as a space, as in prompts.
            templates: sentences with one `{}` for the name.
            batch_size: sentences that are encoded at once.
            normalize_each: whether features are normalised before their mean as well.

        Returns:
            (C, d).

        Raises:
            InputError: two classes that the tokenizer does not tell apart.
        """
        check_distinct(self.tokenizer, class_names, templates)
        total = torch.zeros((), device=self.device)
        for template in templates:
            sentences = [sentence(template, name) for name in class_names]
            parts = []
            for start in range(0, len(sentences), batch_size):
                ids = self.tokenizer(sentences[start : start + batch_size]).to(self.device)
                with torch.no_grad(), autocast(self.device, self.precision):
                    parts.append(self.module.encode_text(ids).float())  # type: ignore[operator]
            features = torch.cat(parts)
            total = total + (F.normalize(features, dim=-1) if normalize_each else features)
        return F.normalize(total, dim=-1)

    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        """Unit text features in the space of the image features of `kind`.

        For features f before the image tower's projection P (w, d), the product (f P) . t is f . (P t), so P t is the
        direction of a class with text feature t in that space (Shi et al., ICML 2024).

        Raises:
            InputError: an image tower without a linear projection.
        """
        if kind == "embedding":
            return text_features
        projection = getattr(self.module.visual, "proj", None)
        if projection is None:
            raise InputError(f"init 'text' needs features 'embedding': encoder '{self.name}' has no linear projection")
        return F.normalize(text_features @ projection.detach().float().t(), dim=-1)


@dataclass(frozen=True)
class OpenClipSpec:
    """An open_clip model that is not loaded yet.

    Args:
        name: an open_clip architecture ("ViT-B-16"), "mini-clip", "local-dir:PATH" or "hf-hub:ORG/NAME".
        pretrained: a tag of that architecture, a local weights file or a folder with one (in open_clip's, OpenAI's or
            Hugging Face's format), or "random" for untrained weights.
        precision: "fp32", or "bf16" for autocast.
        interpolation: PIL's filter that scales images, in place of the model's own; null for the latter.
        features: which image features heads on pooled features read; see `imbalance_vlm.encoders.base.KINDS`.
        final_norm: whether the tokens that a decoder reads are taken after the image tower's final norm.
    """

    name: str
    _: KW_ONLY
    pretrained: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    interpolation: Interpolation | None = None
    features: Literal["embedding", "class_token"] = "embedding"
    final_norm: bool = True

    def identity(self) -> str:
        """Identifies the weights without loading them.

        Raises:
            InputError: an unknown model or tag, or a missing file.
        """
        location = locate(self.name, self.pretrained)
        if self.pretrained == "random":  # the seed is fixed
            return f"random:{location.source}" + (file_fingerprint(location.path / CONFIG) if location.path else "")
        return _fingerprint(location, self.pretrained)

    def build(self) -> OpenClipEncoder:
        """The model with its weights.

        Raises:
            InputError: an unknown model or tag, a missing file, weights of another architecture, or weights that would
                have to be downloaded and cannot be.
        """
        import open_clip

        location, random = locate(self.name, self.pretrained), self.pretrained == "random"
        _check_text_tower(self.name)
        weights = read_weights(location.path) if location.path and not random else None
        if weights is None and not random:
            require_download(self.name, self.pretrained)
        overrides = overrides_for(self.name, self.pretrained, location, weights)
        open_clip_loads = not random and (weights is None or weights.format == "big_vision")
        try:
            with fixed_seed(), quiet():
                model = open_clip.create_model(
                    location.source,
                    pretrained=self.pretrained if open_clip_loads else None,
                    load_weights=open_clip_loads,
                    pretrained_text=False,
                    force_quick_gelu=overrides.quick_gelu,
                    force_preprocess_cfg=overrides.preprocess,
                    weights_only=True,
                )
            preprocessing = from_open_clip(model.visual.preprocess_cfg).with_filter(self.interpolation)
        except Exception as error:  # an invalid configuration raises one of a dozen types
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"encoder '{self.name}' with `pretrained` {self.pretrained!r} could not be made: {reason}"
            ) from error
        if weights and not open_clip_loads:
            fill(model, weights, self.name, str(self.pretrained or location.path))
        pairs = location.config().get("pretrain_pairs")
        return OpenClipEncoder(
            model,
            preprocessing,
            load_tokenizer(self.name, location),
            name=self.name,
            pretrained=self.pretrained or location.source,
            pretrain_pairs=pairs or (None if location.path else pretrain_pairs(self.pretrained)),
            fingerprint=weights_fingerprint(model) if random else _fingerprint(location, self.pretrained),
            precision=self.precision,
            final_norm=self.final_norm,
            samples_seen=samples_seen(self.name, self.pretrained),
        )


def _fingerprint(location: Location, pretrained: str | None) -> str:
    if location.path is None:
        return f"open_clip:{location.source}:{pretrained}"
    # A file's tensors are a different model under another architecture, by its activation for example.
    return file_fingerprint(location.path) + ("" if location.is_model_folder else f":{location.source}")


def _check_text_tower(model: str) -> None:
    tower = text_config(model).get("hf_model_name")
    if tower and not has_transformers():
        raise InputError(
            f"encoder '{model}' needs the package transformers for its text tower ({tower}), and it is not installed; "
            "pip install transformers, or choose an architecture with a text tower of open_clip's own"
        )
