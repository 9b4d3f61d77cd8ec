"""Any open_clip model as an encoder: by name and tag, by a local weights file, or from a local directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.data.loading import Transform
from imbalance_vlm.encoders.base import autocast, file_fingerprint, fixed_start, weights_fingerprint
from imbalance_vlm.errors import InputError, did_you_mean

MINI_CLIP = Path(__file__).resolve().parents[1] / "assets" / "mini_clip"

PRETRAIN_PAIRS: dict[str, int] = {
    "openai": 400_000_000,
    "laion400m": 407_000_000,
    "laion2b": 2_300_000_000,
    "datacomp_s": 1_400_000,
    "datacomp_m": 14_000_000,
    "datacomp_l": 140_000_000,
    "datacomp_xl": 1_400_000_000,
}
"""Image-text pairs behind open_clip's tags, by their beginning (paper figures: the filtered pool for DataComp)."""


class OpenClipEncoder(nn.Module):
    """An open_clip model with its own preprocessing.

    Args:
        model: an open_clip model with an image and a text tower.
        transform: the model's evaluation preprocessing.
        tokenizer: the model's tokenizer.
        name, pretrained, pretrain_pairs: what the result tables show.
        fingerprint: identifies the weights.
        precision: "fp32", or "bf16" for autocast.
        final_norm: whether tokens have passed the image tower's final norm.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform,
        tokenizer: Any,
        name: str,
        pretrained: str,
        pretrain_pairs: int | None,
        fingerprint: str,
        precision: str = "fp32",
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.module = model.eval()
        self.transform = transform
        self.tokenizer = tokenizer
        self.name = name
        self.pretrained = pretrained
        self.pretrain_pairs = pretrain_pairs
        self.fingerprint = fingerprint
        self.precision = precision
        self.final_norm = final_norm

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def logit_scale(self) -> float:
        return float(self.module.logit_scale.detach().exp())  # type: ignore[operator]

    def width(self, kind: str) -> int:
        """Width of the image features of this kind."""
        if not hasattr(self, "_widths"):
            self._widths: dict[str, int] = {}
        if kind not in self._widths:
            size = self.module.visual.image_size  # type: ignore[union-attr]
            height, width = size if isinstance(size, (tuple, list)) else (size, size)
            with torch.no_grad():
                probe = self.image_features(torch.zeros(1, 3, height, width, device=self.device), kind)
            self._widths[kind] = probe.shape[-1]
        return self._widths[kind]

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        """Features of preprocessed pictures, (B, 3, H, W) -> (B, d), (B, w) or (B, T, w); see KINDS. Not normalised.

        Raises:
            InputError: tokens asked of a tower that has none.
        """
        with autocast(self.device, self.precision):
            if kind == "embedding":
                return self.module.encode_image(pixels).float()  # type: ignore[operator]
            if kind == "class_token":
                return self._tokens(pixels)[:, 0].float()
            return self._tokens(pixels, self.final_norm).float()  # (B, T, w)

    def _tokens(self, pixels: Tensor, final_norm: bool = True) -> Tensor:
        visual = self.module.visual
        if not hasattr(visual, "class_embedding") or not hasattr(visual, "ln_post"):
            raise InputError(
                f"features 'tokens' and 'class_token' need an image tower with a class token, encoder '{self.name}' is "
                f"a {type(visual).__name__}; use features 'embedding' and a head that reads them"
            )
        found = visual.forward_intermediates(  # type: ignore[operator, union-attr]
            pixels,
            indices=1,
            normalize_intermediates=final_norm,  # without it the tokens are on another scale altogether
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([found["image_intermediates_prefix"][-1], found["image_intermediates"][-1]], dim=1)

    def text_features(self, class_names: Sequence[str], templates: Sequence[str], batch_size: int = 512) -> Tensor:
        """(C, d) unit text features of the class names, each the renormalised mean over the templates' unit features.

        Source: the prompt ensembling in embedding space of Radford et al., ICML 2021, section 3.1.4.
        """
        total = torch.zeros((), device=self.device)
        for template in templates:
            sentences = [template.format(name) for name in class_names]
            parts = []
            for start in range(0, len(sentences), batch_size):
                ids = self.tokenizer(sentences[start : start + batch_size]).to(self.device)
                with torch.no_grad(), autocast(self.device, self.precision):
                    parts.append(self.module.encode_text(ids).float())  # type: ignore[operator]
            total = total + F.normalize(torch.cat(parts), dim=-1)
        return F.normalize(total, dim=-1)

    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        """Unit text features in the space of the image features of `kind`.

        Before the projection P (w, d) of the image tower, cos(f P, t) is led by f . (P t): the directions P t stand for
        the classes there (Shi et al., ICML 2024).
        """
        if kind == "embedding":
            return text_features
        projection = getattr(self.module.visual, "proj", None)
        if projection is None:
            raise InputError(f"init 'text' needs features 'embedding': encoder '{self.name}' has no linear projection")
        return F.normalize(text_features @ projection.detach().float().t(), dim=-1)


def open_clip_encoder(
    model: str,
    *,
    pretrained: str | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    features: Literal["embedding", "class_token"] = "embedding",
    final_norm: bool = True,
) -> OpenClipEncoder:
    """An open_clip model.

    Args:
        model: an open_clip architecture ("ViT-B-16"), "mini-clip", "local-dir:PATH" or "hf-hub:ORG/NAME".
        pretrained: a tag of that architecture, a local weights file, or "random" for untrained weights.
        precision: "fp32", or "bf16" for autocast.
        features: which image features heads on pooled features read; see `imbalance_vlm.encoders.base.KINDS`.
        final_norm: whether the tokens that a decoder reads have passed the image tower's final norm.

    Raises:
        InputError: an unknown model or tag, a missing file, or weights of another architecture.
    """
    import open_clip

    source, local = _source(model, pretrained)
    quiet = logging.getLogger()
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # open_clip logs to the root logger
    file_or_tag = str(local) if local.is_file() else pretrained
    try:
        with fixed_start():
            net, _, transform = open_clip.create_model_and_transforms(
                source,
                pretrained=None if pretrained == "random" or local.is_dir() else file_or_tag,
                load_weights=pretrained != "random",
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(source, **_tokenizer_settings(local))
    except Exception as error:  # a damaged file raises one of a dozen types
        raise _loading_error(model, pretrained, local, error) from error
    finally:
        quiet.setLevel(level)
    config = _config(local)
    return OpenClipEncoder(
        net,
        transform,
        tokenizer,
        name=model,
        pretrained=pretrained or source,
        pretrain_pairs=config.get("pretrain_pairs") or (None if local.exists() else _known_pairs(pretrained)),
        fingerprint=encoder_fingerprint(model, pretrained) or weights_fingerprint(net),
        precision=precision,
        final_norm=final_norm,
    )


def encoder_fingerprint(model: str, pretrained: str | None) -> str:
    """Identity of the weights without loading them; "" when only the weights themselves can tell."""
    if pretrained == "random":
        return ""
    source, local = _source(model, pretrained)
    return file_fingerprint(local) if local.exists() else f"open_clip:{source}:{pretrained}"


def _source(model: str, pretrained: str | None) -> tuple[str, Path]:
    """open_clip's name for the model, and the local file or folder behind it (a path that does not exist if none).

    Raises:
        InputError: an unknown model, tag or file, with what exists.
    """
    if model == "mini-clip":
        tags = sorted(path.name for path in MINI_CLIP.iterdir() if path.is_dir())
        if pretrained not in tags:
            raise InputError(
                f"`pretrained` of 'mini-clip' must be one of {', '.join(tags)}, got {pretrained!r}."
                f"{did_you_mean(str(pretrained), tags)}"
            )
        return f"local-dir:{MINI_CLIP / pretrained}", MINI_CLIP / pretrained
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(f"encoder '{model}' must be a folder with open_clip_config.json, and there is none")
        if pretrained not in (None, "random"):
            raise InputError(
                f"`pretrained` must be left out with encoder '{model}', whose folder holds the weights, "
                f"got {pretrained!r}"
            )
        weights = [file for suffix in ("safetensors", "bin", "pth") for file in folder.glob(f"*.{suffix}")]
        if not weights and pretrained != "random":
            raise InputError(f"encoder '{model}' must be a folder with weights (*.safetensors), and holds none")
        return model, folder
    if model.startswith("hf-hub:"):
        return model, Path("/nonexistent")
    return _known_model(model, pretrained)


def _known_model(model: str, pretrained: str | None) -> tuple[str, Path]:
    import open_clip

    names = open_clip.list_models()
    if model.replace("/", "-") not in names:
        hint = did_you_mean(model, [*names, "mini-clip"])
        raise InputError(
            f"unknown encoder {model!r}.{hint} It must be 'mini-clip', an open_clip model (open_clip.list_models() "
            "lists them), 'local-dir:PATH', 'hf-hub:ORG/NAME' or 'timm:MODEL'"
        )
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    path = Path(str(pretrained)).expanduser()
    if pretrained == "random" or (pretrained in tags):
        return model, Path("/nonexistent")
    if pretrained is not None and path.is_file():
        return model, path
    raise InputError(
        f"`pretrained` of '{model}' must be a tag ({', '.join(tags) or 'none is known'}), a local weights file or "
        f"'random', got {pretrained!r}.{did_you_mean(str(pretrained), tags)}"
    )


def _config(local: Path) -> dict[str, Any]:
    file = local / "open_clip_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _tokenizer_settings(local: Path) -> dict[str, str]:
    """A vocabulary that lies in the model's folder or beside it, which open_clip would look for elsewhere."""
    for folder in (local, local.parent):
        found = sorted(folder.glob("bpe*.txt.gz")) if folder.is_dir() else []
        if local.is_dir() and found:
            return {"bpe_path": str(found[0])}
    return {}


def _known_pairs(pretrained: str | None) -> int | None:
    matches = [tag for tag in PRETRAIN_PAIRS if str(pretrained).startswith(tag)]
    return PRETRAIN_PAIRS[max(matches, key=len)] if matches else None


def _loading_error(model: str, pretrained: str | None, local: Path, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    misfit = _misfit(model, local) if local.is_file() else ""
    if not misfit and ("state_dict" in text or "size mismatch" in text):  # torch's own list of what does not fit
        misfit = f"{text[text.find(':') + 1 :].strip()[:300]} ..."
    if misfit:
        return InputError(
            f"`pretrained` {pretrained!r} holds weights of another architecture than '{model}': {misfit}. "
            "Name the architecture that the file was trained with"
        )
    if "download" in text:
        return InputError(
            f"the weights '{pretrained}' of '{model}' are not on this machine and could not be fetched: {text[:300]} "
            "Fetch them where there is a network and give the file's path as `pretrained`"
        )
    return InputError(f"encoder '{model}' with `pretrained` {pretrained!r} could not be made: {text[:300]}")


def _misfit(model: str, file: Path) -> str:
    """What in a weights file does not fit an architecture; "" when everything does, or the file cannot be read."""
    import open_clip

    try:
        found = open_clip.load_state_dict(str(file))
    except Exception:  # a damaged file: the first error says more
        return ""
    own = open_clip.create_model(model, load_weights=False).state_dict()
    wrong = [key for key, value in own.items() if key not in found or found[key].shape != value.shape]
    if not wrong:
        return ""
    came = tuple(found[wrong[0]].shape) if wrong[0] in found else "nothing"
    return (
        f"{len(wrong)} of {len(own)} tensors do not fit, such as {wrong[0]}: "
        f"expected {tuple(own[wrong[0]].shape)}, got {came}"
    )
