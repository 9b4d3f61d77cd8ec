"""Linear layers and attention of towers on a CPU, computed by oneDNN.

torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's processors only. oneDNN, which torch uses for
convolutions and bfloat16, does so on all: on AMD's it takes half the time. The products are in float32 as before and
differ in the order of summation. Elsewhere (another device, dtype, build of torch or torch.compile) everything is
computed by torch's own layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""x W^T + b by oneDNN without gradients; None in builds of torch that do not have it."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, by oneDNN if all are float32 on a CPU; (..., i), (o, i) and (o,) -> (..., o)."""
    present = [x, weight] if bias is None else [x, weight, bias]
    if (
        ONEDNN is None
        or torch.compiler.is_compiling()
        or any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in present)
        or torch.is_autocast_enabled("cpu")
        or x.numel() == 0
    ):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Keeps its input for the backward pass only if the weights need a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            linear(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            linear(rows.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class OneDnnLayers:
    """The linear layers and torch's attention modules among `modules`, which compute by oneDNN between `on` and `off`.

    Their `forward` is an entry of their `__dict__` meanwhile, so that hooks, parameters and names stay as they are.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = [module for module in modules if type(module) in _FORWARD]

    def on(self) -> None:
        for module in self.modules:
            module.__dict__["forward"] = MethodType(_FORWARD[type(module)], module)

    def off(self) -> None:
        for module in self.modules:
            module.__dict__.pop("forward", None)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within this context manager the modules compute by oneDNN."""
        self.on()
        try:
            yield
        finally:
            self.off()


def _linear_layer(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _attention(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Self-attention of (B, T, w), or the attention of (B, S, w) to it, without masks; else torch's own.

    torch's transposes (B, T, w) to (T, B, w), which F.linear with frozen weights multiplies in a slow way.
    """
    wanted = {name: option for name, option in options.items() if option is not None}
    if (
        args
        or wanted != {"need_weights": False}
        or key is not value
        or query.device.type != "cpu"
        or query.ndim != 3
        or torch.compiler.is_compiling()
        or not attention.batch_first
        or attention.in_proj_weight is None
        or attention.bias_k is not None
        or attention.add_zero_attn
        or (attention.training and attention.dropout)
    ):
        return nn.MultiheadAttention.forward(attention, query, key, value, *args, **options)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if query is key:
        projected = linear(query, weight, bias).chunk(3, dim=-1)
    else:
        width = query.shape[-1]
        first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        projected = linear(query, weight[:width], first), *linear(key, weight[width:], rest).chunk(2, dim=-1)
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected]  # (B, heads, T, h)
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return linear(mixed, attention.out_proj.weight, attention.out_proj.bias), None


_FORWARD: dict[type[nn.Module], Any] = {nn.Linear: _linear_layer, nn.MultiheadAttention: _attention}
