"""Tiny image towers, prompt heads that read images, and a forward pass of the tower in plain loops."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.tuning.base import TuningContext
from tests.tuning.prompt import contexts
from tests.tuning.prompt.contexts import TEXT, TOKENIZER, make_context, no_plain_head, tuning_of

VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
NAMES = ("cat", "sports_car", "red tailed black cockatoo")
METHODS = ("vpt", "ivlp", "maple", "promptsrc")
TWO_TOWERS = METHODS[1:]
every = pytest.mark.parametrize("name", METHODS)


class TowerOnly:
    """An encoder of an image tower alone, in the tower's own precision."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        features: Tensor = self.module(pixels)
        return features


def perturbed(net: nn.Module, seed: int = 0) -> nn.Module:
    """Frozen, in float64, with norms and biases that are not those of a fresh net."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return net.double().eval().requires_grad_(False)


def tower(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return perturbed(VisionTransformer(16, 8, 32, 3, 2, 4.0, output_dim=16, **settings))


@functools.cache
def model() -> Any:
    torch.manual_seed(0)
    net = perturbed(open_clip.CLIP(16, VISION, TEXT)).float()
    net.logit_scale.data.fill_(2.0)
    return net


def encoder(precision: str = "fp32", net: Any = None) -> Any:
    """A tiny open_clip model that all tests share, as the runs of a study do."""
    preprocessing = Preprocessing((16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return OpenClipEncoder(net or model(), preprocessing, TOKENIZER, "tiny", "random", None, "", precision)


def context_of(**changes: Any) -> TuningContext:
    return make_context({"encoder": encoder(), "class_names": NAMES, "epochs": 4} | changes)


def make(name: str, context: TuningContext | None = None, **settings: Any) -> tuple[Any, Any]:
    """(tuning, head); tests of `vpt` must close the tuning."""
    torch.manual_seed(3)
    tuning = tuning_of(name, **settings)
    return tuning, tuning.head(context or context_of(), no_plain_head)


def batch(count: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, 3, 16, 16, generator=generator, dtype=dtype)
    return pixels, torch.arange(count) % len(NAMES)


def objective_of(tuning: Any, head: Any, context: TuningContext | None = None, criterion: Any = None) -> Objective:
    return contexts.objective_of(tuning, head, context or context_of(), criterion)


def train_steps(
    objective: Objective, tuning: Any, count: int = 3, lr: float = 0.05, inputs: tuple[Tensor, Tensor] | None = None
) -> None:
    optimizer = sgd(tuning.parameters(objective.head), lr=lr, weight_decay=0.1)
    objective.train()
    for _ in range(count):
        optimizer.zero_grad()
        objective.backward(objective(*(inputs or batch())))
        optimizer.step()


def slow_pass(net: VisionTransformer, pixels: Tensor, tokens: Sequence[Tensor], pool: str = "tok") -> Tensor:
    """The tower written out: image by image, patch by patch, head by head, with the tokens put in by hand."""
    outputs = []
    p, w = net.patch_size[0], net.conv1.out_channels
    for image in pixels:
        rows = [net.class_embedding]
        for top in range(0, image.shape[1], p):
            for left in range(0, image.shape[2], p):
                patch = image[:, top : top + p, left : left + p]
                rows.append((net.conv1.weight * patch).sum((1, 2, 3)))
        image_tokens = len(rows)
        x = torch.stack(rows) + net.positional_embedding
        if tokens:
            x = torch.cat([x, tokens[0]])
        x = torch.stack([net.ln_pre(row) for row in x])
        for number, block in enumerate(net.transformer.resblocks):
            if 0 < number < len(tokens):
                x = torch.cat([x[:image_tokens], tokens[number]])
            normed = block.ln_1(x)
            heads = block.attn.num_heads
            q, k, v = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(w, dim=1)
            parts = []
            for h in range(heads):
                cols = slice(h * w // heads, (h + 1) * w // heads)
                scores = q[:, cols] @ k[:, cols].T / math.sqrt(w // heads)
                parts.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, cols])
            x = x + block.attn.out_proj(torch.cat(parts, 1))
            x = x + block.mlp(block.ln_2(x))
        x = net.ln_post(x[:image_tokens])
        pooled = x[0] if pool == "tok" else x[1:].mean(0)
        outputs.append(pooled @ net.proj)
    return torch.stack(outputs)
