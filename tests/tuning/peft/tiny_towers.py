"""Tiny image towers in float64, every method that tunes one, and the sections of recipes that name them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmTower
from torch import Tensor, nn

from imbalance_vlm.components import catalogue
from imbalance_vlm.tuning.peft.adapter import Adapter
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower
from imbalance_vlm.tuning.peft.bitfit import BitFit
from imbalance_vlm.tuning.peft.full import Full
from imbalance_vlm.tuning.peft.layernorm import LayerNorm
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.partial import Partial
from imbalance_vlm.tuning.peft.random_mask import RandomMask
from imbalance_vlm.tuning.peft.ssf import SSF
from imbalance_vlm.tuning.peft.tuning import PeftTuning
from imbalance_vlm.tuning.peft.vpt import VPT

CLASSES = 20
METHODS: dict[str, TowerMethod] = {
    "adaptformer": AdaptFormer(width=16),
    "adapter": Adapter(width=16),
    "lora": LoRA(rank=3),
    "ssf": SSF(),
    "vpt": VPT(tokens=3),
    "vpt_shallow": VPT(tokens=3, deep=False),
    "bitfit": BitFit(),
    "layernorm": LayerNorm(),
    "random_mask": RandomMask(share=0.1),
    "partial": Partial(last=1),
    "full": Full(),
}
IN_PLACE = ("bitfit", "layernorm", "partial", "full")
ADDED = [name for name in METHODS if not name.startswith("vpt")]
SECTIONS: dict[str, dict[str, Any]] = {
    **{name: {"name": "peft", "method": name} for name in catalogue.PEFT.names()},
    "full": {"name": "full", "lr_decay": 0.5, "kl": 0.5},
}

ROTARY = {"use_rot_pos_emb": True, "ref_feat_shape": (2, 2)}
EVA: dict[str, dict[str, object]] = {
    # one matrix and separate biases, of which that of the keys is not trained (EVA01)
    "eva01": {"init_values": 0.3},
    # three matrices, a gated MLP in three, norms inside both branches (EVA02)
    "eva02": {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, **ROTARY},
    # norms after attention and MLP (EVA02-E)
    "post_norm": {"use_post_norm": True, "global_pool": "token"},
    # one matrix with its bias, a norm before the blocks, pooling by attention (Perception Encoder)
    "pe": {"attn_type": "rope", "use_pre_transformer_norm": True, "global_pool": "map", "init_values": 0.3, **ROTARY},
    "packed_gate": {"swiglu_mlp": True, "qkv_bias": False},
    "grouped": {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1, "qk_norm": True, **ROTARY},
    "separate": {"init_values": 0.3},
}


def tower(kind: str, seed: int = 0, **settings: object) -> nn.Module:
    """A tiny image tower in float64 whose norms, scales and biases are not those of a fresh one."""
    if kind in EVA:
        return copy.deepcopy(_eva(kind))
    torch.manual_seed(seed)
    if kind == "open_clip":
        net: nn.Module = OpenClipTower(16, 8, 32, 2, 2, 4.0, output_dim=16, **settings)
    else:
        net = TimmTower(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, **settings)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net.double().eval()


@functools.cache
def _eva(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = Eva(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, **EVA[kind])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for block in net.blocks:
        block.attn.qkv_bias_separate = kind == "separate"
        if getattr(block.attn, "k_bias", None) is not None:
            block.attn.k_bias += 0.2 * torch.randn_like(block.attn.k_bias)  # zeros in practice
    return net.double().eval()


def make_tuning(name: str, **settings: Any) -> PeftTuning:
    """The tuning that a recipe's section names."""
    tuning = catalogue.TUNINGS.make(SECTIONS[name] | settings, {})
    assert isinstance(tuning, PeftTuning)
    return tuning


def tensors_outside_the_state(net: nn.Module) -> list[Tensor]:
    """What an interrupted method would leave: tensors in the place of parameters."""
    return [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def features(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(pixels())


def train_steps(tuned: TunedTower, steps: int = 3) -> None:
    """A few steps of SGD with momentum and weight decay, which change everything that is trained."""
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        tuned.root(pixels()).square().sum().backward()
        optimizer.step()


def on(kinds: Iterable[str], names: Iterable[str] = METHODS) -> pytest.MarkDecorator:
    """Parametrize a test by (kind, name): methods on towers, without tokens where attention has rotary positions."""
    pairs = [(kind, name) for kind in kinds for name in names if kind not in EVA or name in ADDED]
    return pytest.mark.parametrize(("kind", "name"), pairs)


both = pytest.mark.parametrize("kind", ["open_clip", "timm"])
every = pytest.mark.parametrize("name", METHODS)
every_on_every_tower = on(["open_clip", "timm", *EVA])
