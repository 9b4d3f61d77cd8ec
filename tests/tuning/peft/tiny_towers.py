"""Tiny image towers in float64, and every method that tunes one."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm.models.vision_transformer import VisionTransformer as TimmTower
from torch import Tensor, nn

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


def tower(kind: str, seed: int = 0, **settings: object) -> nn.Module:
    """A tiny image tower in float64 whose norms and biases are not those of a fresh one."""
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


both = pytest.mark.parametrize("kind", ["open_clip", "timm"])
every = pytest.mark.parametrize("name", METHODS)
