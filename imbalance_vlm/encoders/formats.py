"""Weights of CLIP and SigLIP models in the formats they are published in, under open_clip's names.

[0] Radford, Kim, Hallacy, et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.
    Zhai, Mustafa, Kolesnikov, Beyer. Sigmoid Loss for Language Image Pre-Training. ICCV 2023.
[1] github.com/huggingface/transformers, models/clip/modeling_clip.py and models/siglip/modeling_siglip.py

    open_clip  a state dict, or a training checkpoint that has one under `state_dict`; names may begin with `module.`
    openai     a TorchScript archive or its state dict, which includes input_resolution, context_length and vocab_size
    hf_clip    the CLIPModel of [1]: separate query, key and value, projections as linear layers (transposed)
    hf_siglip  the SiglipModel of [1]: the same, and a pooling head, whose query is separate in open_clip's tower
    big_vision the .npz files of SigLIP's authors, which open_clip reads itself

A tensor that no rule renames keeps its name, so the comparison with the architecture reports it. Only buffers of
position numbers and OpenAI's three sizes are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imbalance_vlm.encoders.torchscript import is_torchscript, read_torchscript
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import read_json, require_file

Format = Literal["open_clip", "openai", "hf_clip", "hf_siglip", "big_vision"]

FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Usual names of the weights in a model's folder, in order of preference."""

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")

_SIZES = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives, besides the weights

_CLIP_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_BLOCK = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.qkv.": ".attn.in_proj_",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_SIGLIP_NAMES = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.attention.": "visual.trunk.attn_pool.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "text_model.embeddings.token_embedding.": "text.token_embedding.",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.": "text.text_projection.",
}
_TIMM_BLOCK = {
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
    ".self_attn.qkv.": ".attn.qkv.",
    ".self_attn.out_proj.": ".attn.proj.",
}


_MAPPING = dict[str, Any] | None
CONFIG_SHAPE = {"model_cfg": _MAPPING, "preprocess_cfg": _MAPPING, "pretrain_pairs": int | None}
"""What is read of open_clip_config.json."""
_HF_CONFIG = {"vision_config": _MAPPING, "text_config": _MAPPING}
_HF_PREPROCESSING = {"image_mean": list[float] | None, "image_std": list[float] | None, "do_center_crop": bool | None}


@dataclass(frozen=True)
class Weights:
    """The content of a weights file.

    Args:
        file: its path.
        format: see the module's description.
        state: the tensors, under open_clip's names; {} for a format that open_clip reads itself.
        quick_gelu: whether the model was trained with QuickGELU; None if neither the file nor a configuration beside it
            says so.
        preprocess: the preprocessing in the configuration beside it, with open_clip's keys; {} without one.
    """

    file: Path
    format: Format
    state: dict[str, Tensor]
    quick_gelu: bool | None
    preprocess: dict[str, Any]


def read_weights(path: Path) -> Weights:
    """Weights from a file, or from a model's folder.

    Args:
        path: a file (.safetensors, .bin, .pt, .pth, .npz), or a folder with one of `FILES`.

    Raises:
        InputError: a folder without weights, or a file without any.
    """
    file = weights_file(path)
    if file.suffix == ".npz":
        return Weights(file, "big_vision", {}, False, {})
    try:
        state, archive = _tensors(file)
    except Exception as error:  # a damaged file raises one of a dozen types
        raise InputError(
            f"`pretrained` '{file}' could not be read as weights: {' '.join(str(error).split())[:300]}"
        ) from error
    kind = detect(state)
    if kind == "open_clip" and (archive or all(name in state for name in _SIZES)):
        kind = "openai"
    hf_config = read_json(file.parent / "config.json", _HF_CONFIG) if kind.startswith("hf") else {}
    config = read_json(file.parent / "open_clip_config.json", CONFIG_SHAPE)
    preprocessing = read_json(file.parent / "preprocessor_config.json", _HF_PREPROCESSING)
    return Weights(
        file,
        kind,
        converted(state, kind),
        _quick_gelu(kind, hf_config, config),
        config.get("preprocess_cfg") or _preprocess(preprocessing),
    )


def weights_file(path: Path) -> Path:
    """The weights file in a model's folder; a file is returned as it is.

    Raises:
        InputError: no weights in the folder, or several files without a usual name.
    """
    if not path.is_dir():
        return require_file(path, "`pretrained`")
    for name in FILES:
        if (path / name).is_file():
            return path / name
    candidates = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(candidates) == 1:
        return candidates[0]
    content = f"{len(candidates)} files ({candidates[0].name}, ...); name one of them" if candidates else "none"
    raise InputError(
        f"a model's folder must hold weights, such as {FILES[0]} or model.safetensors; {path} has {content}"
    )


def detect(state: Mapping[str, Tensor]) -> Format:
    """The format of a state dict, by the names of its tensors.

    >>> detect({"vision_model.head.probe": torch.zeros(1)}), detect({"visual.proj": torch.zeros(1)})
    ('hf_siglip', 'open_clip')
    """
    if not any(name.startswith(("vision_model.", "text_model.")) for name in state):
        return "open_clip"
    return "hf_siglip" if any(name.startswith("vision_model.head.") for name in state) else "hf_clip"


def converted(state: Mapping[str, Tensor], kind: Format) -> dict[str, Tensor]:
    """The tensors of a format under open_clip's names; a tensor that no rule renames keeps its name."""
    if kind == "openai":
        return {name: value for name, value in state.items() if name not in _SIZES}
    if kind == "open_clip":
        return dict(state)
    packed = _packed({name: value for name, value in state.items() if not name.endswith(".position_ids")})
    if kind == "hf_clip":
        named = {_renamed(name, _CLIP_NAMES, _OPEN_CLIP_BLOCK): value for name, value in packed.items()}
        for name in ("visual.proj", "text_projection"):
            if name in named:
                named[name] = named[name].t().contiguous()  # (d, w) of a linear layer to (w, d)
        return named
    named = {}
    for name, value in packed.items():
        blocks = _OPEN_CLIP_BLOCK if name.startswith("text_model.") else _TIMM_BLOCK
        new = _renamed(name, _SIGLIP_NAMES, blocks)
        if new.startswith("visual.trunk.attn_pool.in_proj_"):
            layer, parameter = new.split(".in_proj_")
            w = len(value) // 3
            named[f"{layer}.q.{parameter}"], named[f"{layer}.kv.{parameter}"] = value[:w], value[w:]
        else:
            named[new] = value[None] if new == "visual.trunk.pos_embed" else value
    return named


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Differences between a model's state dict and another, one clause per tensor; [] if names and shapes are equal."""
    wrong = []
    for name, value in expected.items():
        if name not in state:
            wrong.append(f"{name}: expected {tuple(value.shape)}, got nothing")
        elif state[name].shape != value.shape:
            wrong.append(f"{name}: expected {tuple(value.shape)}, got {tuple(state[name].shape)}")
    return wrong + [
        f"{name}: expected nothing, got {tuple(state[name].shape)}" for name in state if name not in expected
    ]


def _tensors(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The state dict in a file, and whether the file is a TorchScript archive."""
    if file.name.endswith(".index.json"):
        parts = sorted(set(read_json(file, {"weight_map": dict[str, str]})["weight_map"].values()))
        return {name: value for part in parts for name, value in _tensors(file.parent / part)[0].items()}, False
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _unwrapped(load_file(file)), False
    if is_torchscript(file):
        return _unwrapped(read_torchscript(file)), True
    return _unwrapped(torch.load(file, map_location="cpu", weights_only=True)), False


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The state dict of a checkpoint, without the prefixes of wrappers."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError("it holds no state dict (names and tensors, also under `state_dict`)")
    state = dict(content)
    for wrapper in ("module.", "_orig_mod."):
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with query, key and value of each attention stacked in this order."""
    packed = {}
    for name, value in state.items():
        if ".self_attn.q_proj." in name:
            names = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
            if all(part in state for part in names):
                packed[name.replace("q_proj", "qkv")] = torch.cat([state[part] for part in names])
                continue
        query = name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")
        if ".self_attn.q_proj." not in query or query == name or query not in state:
            packed[name] = value
    return packed


def _renamed(name: str, names: Mapping[str, str], block: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if ".resblocks." in name or ".blocks." in name:
        for old, new in block.items():
            name = name.replace(old, new)
    return name


def _quick_gelu(kind: Format, hf_config: Mapping[str, Any], config: Mapping[str, Any]) -> bool | None:
    if kind == "openai":
        return True
    if kind == "hf_siglip":
        return False
    if kind == "hf_clip" and hf_config:
        towers = [hf_config.get(tower) or {} for tower in ("vision_config", "text_config")]
        return all(tower.get("hidden_act", "quick_gelu") == "quick_gelu" for tower in towers)  # the default of [1]
    return bool(config["model_cfg"].get("quick_gelu", False)) if config.get("model_cfg") else None


def _preprocess(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's description of the preprocessing with open_clip's keys."""
    if not config.get("image_mean") or not config.get("image_std"):
        return {}
    size = config.get("size")
    squash = isinstance(size, Mapping) and "height" in size and not config.get("do_center_crop", False)
    return {
        "mean": tuple(config["image_mean"]),
        "std": tuple(config["image_std"]),
        "interpolation": "bilinear" if config.get("resample") == 2 else "bicubic",
        "resize_mode": "squash" if squash else "shortest",
    }
