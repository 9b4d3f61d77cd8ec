"""The last block of open_clip's image tower for the class token alone, where no other token is read after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def class_token_only(visual: Any) -> AbstractContextManager[None]:
    """Within this context, the last block of the tower returns its first token only, (B, 1, w).

    All tokens give keys and values; the query, the MLP and what a tuning method adds to them are computed for the class
    token only, with its values and gradients unchanged. Nothing changes where gradients are not recorded, in a tower
    that reads other tokens after its blocks, and in one of other parts.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not _reads_class_token(visual):
        return nullcontext()
    block = visual.transformer.resblocks[-1]
    return _shortened(block) if _is_known(block) else nullcontext()


@contextmanager
def _shortened(block: nn.Module) -> Iterator[None]:
    block.__dict__["forward"] = MethodType(_first_token, block)  # called as the block is, with its hooks
    try:
        yield
    finally:
        del block.__dict__["forward"]


def _first_token(block: Any, x: Tensor, *nothing: None, attn_mask: None = None) -> Tensor:
    """The block's output for the first token, (B, T, w) -> (B, 1, w)."""
    tokens = block.ln_1(x)
    x = x[:, :1] + block.ls_1(block.attn(tokens[:, :1], tokens, tokens, need_weights=False)[0])
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _reads_class_token(visual: Any) -> bool:
    """Whether the tower is open_clip's own and its features are those of the class token."""
    transformer: Any = getattr(visual, "transformer", None)
    return (
        getattr(visual, "class_embedding", None) is not None
        and getattr(visual, "pool_type", None) == "tok"
        and getattr(visual, "attn_pool", None) is None
        and not getattr(visual, "output_tokens", True)
        and isinstance(getattr(transformer, "resblocks", None), nn.ModuleList)
        and getattr(transformer, "batch_first", False)
        and not transformer.grad_checkpointing
    )


def _is_known(block: nn.Module) -> bool:
    parts = {name for name, _ in block.named_children()}
    return (
        {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"} <= parts
        and "ln_1_kv" not in parts
        and isinstance(block.attn, nn.MultiheadAttention)
    )
