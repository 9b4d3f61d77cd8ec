"""A tower with AdaptFormer as published code runs it, for comparison in `imbalance-vlm bench train`.

[0] github.com/shijxcs/LIFT, models/peft_vit.py and models/peft_modules.py

The tower's own modules are not called as blocks; a loop reads their weights and computes, in every block and for all
tokens, with the tokens first (T, B, w):

    q, k, v = parts of W_in norm1(x) + b_in, one product, each copied to (B heads, T, h)
    x <- x + W_out attention(q, k, v) + b_out
    x <- x + MLP(norm2(x)) + s (Up ReLU(Down LN(x)) + b_up)

where s multiplies the tokens of the output, and the class token is taken after the last block. This is a separate
implementation of [0]'s computation. On the same weights and images it gives the same losses as [0]'s own modules, and
takes the same time (measured once, on two CPU cores).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.errors import InputError
from imbalance_vlm.tuning.peft.adaptformer import ParallelBottleneck


class ReleasedWay(nn.Module):
    """Pixels (B, 3, H, W) to the class token (B, w) after the final norm.

    Args:
        visual: an image tower of open_clip's own; its weights are used as they are.
        adapters: one per block.

    Raises:
        InputError: another tower.
    """

    def __init__(self, visual: Any, adapters: list[ParallelBottleneck]) -> None:
        super().__init__()
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", [])
        if not blocks or not all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
            raise InputError(
                f"`model` must have a vision transformer of open_clip's own, such as ViT-B-16, got one with a "
                f"{type(visual).__name__}"
            )
        self.visual = visual
        self.adapters = nn.ModuleList(adapters)

    def forward(self, pixels: Tensor) -> Tensor:
        visual = self.visual
        x = visual.conv1(pixels).flatten(2).permute(0, 2, 1)  # (B, T - 1, w)
        first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = visual.ln_pre(torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype))
        for block, adapter in zip(visual.transformer.resblocks, self.adapters, strict=True):
            x = x.permute(1, 0, 2)  # (T, B, w)
            x = x + _attention(block.attn, block.ln_1(x))
            x = x + (_mlp(block.mlp, block.ln_2(x)) + _adapter(adapter, x))
            x = x.permute(1, 0, 2)
        return visual.ln_post(x[:, 0])


def _attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    T, B, w = x.shape
    joint = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)  # (T, B, 3 w)
    rows = (T, B * attention.num_heads, w // attention.num_heads)
    q, k, v = (part.contiguous().view(rows).transpose(0, 1) for part in joint.chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).contiguous().view(T * B, w)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias).view(T, B, w)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    first, activation, second = mlp
    return F.linear(activation(F.linear(x, first.weight, first.bias)), second.weight, second.bias)


def _adapter(adapter: Any, x: Tensor) -> Tensor:
    hidden = F.relu(F.linear(adapter.norm(x), adapter.down.weight, adapter.down.bias), inplace=True)
    return F.linear(hidden, adapter.up.weight, adapter.up.bias) * adapter.scale
