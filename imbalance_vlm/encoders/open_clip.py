"""Any open_clip model as an encoder: by name and tag, by a local weights file or folder, or from a local directory.

Local weights may be in any format that `imbalance_vlm.encoders.formats` knows. What was trained with QuickGELU gets
QuickGELU under either name of its architecture: the weights alone would not show that it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.data.loading import Transform
from imbalance_vlm.encoders.architectures import configuration, fill, has_transformers, quiet, text_config
from imbalance_vlm.encoders.base import autocast, file_fingerprint, fixed_start, weights_fingerprint
from imbalance_vlm.encoders.formats import Weights, read_json, read_weights
from imbalance_vlm.encoders.hub import download_command, require_repository
from imbalance_vlm.encoders.timm import as_tokens
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.progress import note

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
        """Features of preprocessed images, (B, 3, H, W) -> (B, d), (B, w) or (B, T, w); see KINDS. Not normalised.

        Raises:
            InputError: tokens asked of a tower that has none.
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
                f"features 'tokens' need a final norm on the tokens, encoder '{self.name}' norms what its attention "
                "makes of them; set encoder.final_norm to false, or use features 'embedding'"
            )
        found = visual.forward_intermediates(
            pixels,
            indices=1,
            normalize_intermediates=final_norm,  # without it the tokens are on another scale altogether
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([found["image_intermediates_prefix"][-1], found["image_intermediates"][-1]], dim=1)

    def _trunk_tokens(self, trunk: Any, pixels: Tensor, final_norm: bool) -> Tensor:
        """All tokens of a tower that comes from timm, the class token, or the mean in its place, first."""
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

    def text_features(self, class_names: Sequence[str], templates: Sequence[str], batch_size: int = 512) -> Tensor:
        """(C, d) unit text features of the class names, each the renormalised mean over the templates' unit features.

        An underscore in a name is read as a space, as in prompts.

        Source: the prompt ensembling in embedding space of Radford et al., ICML 2021, section 3.1.4.
        """
        total = torch.zeros((), device=self.device)
        for template in templates:
            sentences = [template.format(name.replace("_", " ")) for name in class_names]
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
        pretrained: a tag of that architecture, a local weights file or a folder with one (in open_clip's, OpenAI's or
            Hugging Face's format), or "random" for untrained weights.
        precision: "fp32", or "bf16" for autocast.
        features: which image features heads on pooled features read; see `imbalance_vlm.encoders.base.KINDS`.
        final_norm: whether the tokens that a decoder reads have passed the image tower's final norm.

    Raises:
        InputError: an unknown model or tag, a missing file, weights of another architecture, or weights that would
            have to be fetched and cannot be.
    """
    import open_clip

    source, local = _source(model, pretrained)
    _check_text_tower(model)
    weights = read_weights(local) if local.exists() and pretrained != "random" else None
    if weights is None and pretrained != "random":
        _check_reachable(model, pretrained)
    quick_gelu, preprocess = _as_trained(model, pretrained, weights)
    by_open_clip = weights is None or weights.format == "big_vision"
    try:
        with fixed_start(), quiet():
            net, _, transform = open_clip.create_model_and_transforms(
                source,
                pretrained=pretrained if by_open_clip and pretrained != "random" else None,
                load_weights=by_open_clip and pretrained != "random",
                pretrained_text=False,
                force_quick_gelu=quick_gelu,
                weights_only=True,
                **preprocess,
            )
    except Exception as error:  # a configuration that is none raises one of a dozen types
        why = " ".join(str(error).split())[:300]
        raise InputError(f"encoder '{model}' with `pretrained` {pretrained!r} could not be made: {why}") from error
    if weights and not by_open_clip:
        fill(net, weights, model, str(pretrained or local))
    return OpenClipEncoder(
        net,
        transform,
        _tokenizer(model, source, local),
        name=model,
        pretrained=pretrained or source,
        pretrain_pairs=_config(local).get("pretrain_pairs") or (None if local.exists() else _known_pairs(pretrained)),
        fingerprint=encoder_fingerprint(model, pretrained) or weights_fingerprint(net),
        precision=precision,
        final_norm=final_norm,
    )


def encoder_fingerprint(model: str, pretrained: str | None) -> str:
    """Identity of the weights without loading them; "" when only the weights themselves can tell."""
    if pretrained == "random":
        return ""
    source, local = _source(model, pretrained)
    if local.exists():  # the same tensors are another model with another activation
        return file_fingerprint(local) + ("" if source.startswith("local-dir:") else f":{source}")
    return f"open_clip:{source}:{pretrained}"


class NoTokenizer:
    """Stands where a tokenizer would that this machine lacks: the image tower works without one.

    Args:
        reason: what is missing, and the remedy.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        raise InputError(self.reason)


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
    if pretrained and path.exists():
        return model, path
    raise InputError(
        f"`pretrained` of '{model}' must be a tag ({', '.join(tags) or 'none is known'}), a local weights file, a "
        f"folder with one, or 'random', got {pretrained!r}.{did_you_mean(str(pretrained), tags)}"
    )


def _config(local: Path) -> dict[str, Any]:
    return read_json((local if local.is_dir() else local.parent) / "open_clip_config.json")


def _check_text_tower(model: str) -> None:
    tower = text_config(model).get("hf_model_name")
    if tower and not has_transformers():
        raise InputError(
            f"encoder '{model}' needs the package transformers for its text tower ({tower}), and it is not installed; "
            "pip install transformers, or choose an architecture with a text tower of open_clip's own"
        )


def _check_reachable(model: str, pretrained: str | None) -> None:
    """Refuse at once, with the command that helps, what would have to be fetched and cannot be.

    Raises:
        InputError: weights that are neither in the cache nor within reach.
    """
    if model.startswith("hf-hub:"):
        repository, files = model.removeprefix("hf-hub:"), ["open_clip_config.json"]
        place = f"encoder.name=local-dir:/path/to/{repository.rpartition('/')[2]}"
    else:
        repository, _, file = _tag(model, pretrained).get("hf_hub", "").rpartition("/")
        if not repository:
            return
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        place = f"encoder.pretrained=/path/to/{repository.rpartition('/')[2]}"
    require_repository(
        repository,
        files,
        f"the weights '{pretrained or repository}' of encoder '{model}'",
        f"Where there is a network: {download_command(repository)}. Copy the folder here and set {place}",
    )


def _tag(model: str, pretrained: str | None) -> dict[str, Any]:
    """open_clip's record of a tag, {} for what is none."""
    from open_clip import pretrained as library

    found: dict[str, Any] = library.get_pretrained_cfg(model.replace("/", "-"), str(pretrained))
    return found


def _as_trained(model: str, pretrained: str | None, weights: Weights | None) -> tuple[bool, dict[str, Any]]:
    """Whether QuickGELU is put in, and the preprocessing that open_clip would not find out by itself.

    Raises:
        InputError: weights whose activation cannot be known, or is another than the name says.
    """
    if weights is None:
        return bool(_tag(model, pretrained).get("quick_gelu")), {}
    if model.startswith("local-dir:") or model == "mini-clip":
        return weights.format == "openai" or bool(weights.format == "hf_clip" and weights.quick_gelu), {}
    config = configuration(model)
    named = bool(config.get("quick_gelu"))
    if named and weights.quick_gelu is False:
        raise InputError(
            f"`pretrained` {pretrained!r} was trained with plain GELU ({weights.format} format), '{model}' has "
            f"QuickGELU; set encoder.name to '{model.removesuffix('-quickgelu')}'"
        )
    if weights.format == "hf_clip" and weights.quick_gelu is None and not named:
        raise InputError(
            f"`pretrained` {pretrained!r} must have its config.json beside it, which says whether it was trained with "
            "QuickGELU, got none. Put it there, or set encoder.name to the '-quickgelu' variant of the architecture if "
            "the model comes from OpenAI"
        )
    own_activation = any("act_kwargs" in config.get(tower, {}) for tower in ("vision_cfg", "text_cfg"))
    return bool(weights.quick_gelu) and not own_activation, _images(model, weights)


def _images(model: str, weights: Weights) -> dict[str, Any]:
    """Mean, deviation, interpolation and resizing for a local file, as arguments of open_clip's."""
    import open_clip

    keys = ("mean", "std", "interpolation", "resize_mode")
    found: Mapping[str, Any] = weights.preprocess
    if not found and weights.format not in ("openai", "hf_clip"):
        name = model.replace("/", "-")
        known: dict[tuple[Any, ...], list[str]] = {}
        for tag in open_clip.list_pretrained_tags_by_model(name):
            known.setdefault(tuple(_tag(name, tag)[key] for key in keys), []).append(tag)
        if len(known) > 1:
            most = max(known, key=lambda one: len(known[one]))
            others = ", ".join(tag for one, tags in known.items() if one != most for tag in tags)
            note(
                f"{weights.file} does not say how its images were prepared: mean {most[0]}, std {most[1]}, "
                f"{most[2]}, {most[3]} are used, which is wrong for {others}; put its open_clip_config.json beside it"
            )
            found = dict(zip(keys, most, strict=True))
        elif known:
            found = dict(zip(keys, next(iter(known)), strict=True))
    return {
        argument: found[key]
        for key, argument in zip(
            keys, ("image_mean", "image_std", "image_interpolation", "image_resize_mode"), strict=True
        )
        if key in found
    }


def _tokenizer(model: str, source: str, local: Path) -> Any:
    """The model's tokenizer; one that says what it lacks where that is a library or a file."""
    import open_clip

    config = _config(local).get("model_cfg", {}).get("text_cfg", {}) if local.is_dir() else {}
    config = config or text_config(model)
    name = config.get("hf_tokenizer_name")
    try:
        if not name:
            return open_clip.get_tokenizer(source, **_vocabulary(local))
        with_words = f"encoder '{model}' reads words with a Hugging Face tokenizer ({name})"
        if not has_transformers():
            return NoTokenizer(f"{with_words}, which needs the package transformers: pip install transformers")
        folder = local if local.is_dir() else local.parent
        if any((folder / file).is_file() for file in _TOKENIZER_FILES):
            settings = dict(config.get("tokenizer_kwargs", {}))
            return open_clip.tokenizer.HFTokenizer(
                str(folder),
                context_length=config.get("context_length", 77),
                tokenizer_mode=config.get("tokenizer_mode"),
                **settings,
            )
        try:
            remedy = f"Where there is a network: {download_command(name)}. Copy its files beside the weights"
            require_repository(name, _TOKENIZER_FILES, "its files", remedy)
        except InputError as error:
            return NoTokenizer(f"{with_words}: {error}")
        with quiet():
            return open_clip.get_tokenizer(source)
    except Exception as error:  # a damaged vocabulary raises one of a dozen types
        return NoTokenizer(
            f"the tokenizer of encoder '{model}' could not be made: {' '.join(str(error).split())[:300]}"
        )


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt")


def _vocabulary(local: Path) -> dict[str, str]:
    """A vocabulary that lies in the model's folder or beside it, which open_clip would look for elsewhere."""
    for folder in (local, local.parent):
        found = sorted(folder.glob("bpe*.txt.gz")) if folder.is_dir() else []
        if local.is_dir() and found:
            return {"bpe_path": str(found[0])}
    return {}


def _known_pairs(pretrained: str | None) -> int | None:
    matches = [tag for tag in PRETRAIN_PAIRS if str(pretrained).startswith(tag)]
    return PRETRAIN_PAIRS[max(matches, key=len)] if matches else None
