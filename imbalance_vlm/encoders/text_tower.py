"""open_clip's text towers with replaceable token embeddings; which savings a tower allows is derived from its parts.

[0] Radford, Kim, Hallacy, et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.
[1] github.com/mlfoundations/open_clip, src/open_clip/transformer.py (TextTransformer and its two kinds of block).

In a causal tower a token never attends to later ones. If the feature is that of the end-of-text token, the sequence can
be cut after that token, and the keys and values of the tokens that all prompts begin with can be computed once. A tower
that attends in both directions, pools the last position or appends a class token runs at its full length through [1]'s
own blocks.

Differs from [1] in: the causal path computes attention from the blocks' own weights, in two parts (the shared prefix
and the prompt's own tokens), because the keys of the shared prefix need not be repeated for every class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.encoders.linear import OneDnnLayers, linear
from imbalance_vlm.errors import InputError


class TextTower:
    """The text tower of an open_clip model, frozen. It shares the weights with the model, and moves with it.

    Args:
        model: an open_clip model; its text tower's weights stop requiring gradients.
        name: of the encoder, for errors.

    Raises:
        InputError: a text tower from another library (HuggingFace), or one without a single feature per text.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.home: Any = getattr(model, "text", model)  # CLIP has the parts of its text tower on itself
        self.name = name
        self._check()
        for part in ("token_embedding", "transformer", "ln_final", "text_projection"):
            if isinstance(getattr(self.home, part), nn.Module):
                getattr(self.home, part).requires_grad_(False)
        for value in (self.home.positional_embedding, self.home.text_projection, self._class_token):
            if isinstance(value, nn.Parameter):
                value.requires_grad_(False)

    def _check(self) -> None:
        parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        if not all(hasattr(self.home, part) for part in parts) or not hasattr(self.home.transformer, "resblocks"):
            raise InputError(
                f"prompts need a text tower of open_clip's own, whose token embeddings can be replaced; encoder "
                f"'{self.name}' has a {type(self.home).__name__}. Choose an encoder without `hf_model_name` in its "
                "configuration"
            )
        if self._pool == "none":
            raise InputError(
                f"prompts need a text tower with one feature per text, encoder '{self.name}' pools 'none'; "
                "choose one that pools at the end-of-text token or the last position"
            )
        if not getattr(self.home.transformer, "batch_first", True):
            raise InputError(f"prompts need a text tower with the batch first, encoder '{self.name}' has it second")
        if self._masks_padding and not hasattr(self.home, "_build_additive_mask"):
            raise InputError(
                f"encoder '{self.name}' masks padding in a way that this version of open_clip does not expose; "
                "use open_clip 3.3 or newer"
            )

    @property
    def _pool(self) -> str:
        return str(getattr(self.home, "pool_type", getattr(self.home, "text_pool_type", "argmax")))

    @property
    def _class_token(self) -> Tensor | None:
        """CoCa's class token, appended after the padding."""
        return getattr(self.home, "cls_emb", None)

    @property
    def _masks_padding(self) -> bool:
        return self._class_token is not None or bool(getattr(self.home, "use_pad_mask", False))

    @property
    def blocks(self) -> list[Any]:
        return list(self.home.transformer.resblocks)

    @property
    def width(self) -> int:
        return int(self.home.token_embedding.weight.shape[1])

    @property
    def context_length(self) -> int:
        return int(self.home.context_length)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.home.token_embedding.weight.device
        return device

    @property
    def causal(self) -> bool:
        """Whether tokens depend only on earlier ones, and the feature on no padding; false if that is not known."""
        return (
            self._pool in ("argmax", "eos")
            and not self._masks_padding
            and _is_causal(self.home.attn_mask, self.context_length)
            and all(_is_known(block) for block in self.blocks)
        )

    def pooled_at(self, ids: Tensor) -> Tensor:
        """Position of the token that becomes a text's feature, (C, T) ids -> (C,)."""
        if self._class_token is not None:
            return torch.full((len(ids),), ids.shape[1])
        if self._pool == "argmax":
            return ids.argmax(1)
        if self._pool == "eos":
            eos: Any = getattr(self.home, "eos_id", getattr(self.home, "text_eos_id", None))
            return torch.eq(ids, eos).int().argmax(1)
        return torch.full((len(ids),), 0 if self._pool == "first" else ids.shape[1] - 1)

    def embed(self, ids: Tensor, slots: Tensor, context: Tensor, first: int = 0) -> Tensor:
        """The input of the first block for the positions from `first` on, (B, T) ids and slots -> (B, T, w)."""
        dtype = self.home.transformer.get_cast_dtype()
        x = self.home.token_embedding(ids.to(self.device)).to(dtype)
        x = insert(x, slots, context)
        if self._class_token is not None:
            x = torch.cat([x, self._class_token.to(dtype).expand(len(x), 1, -1)], 1)
        return x + self.home.positional_embedding[first : first + x.shape[1]].to(dtype)

    def full_length(self, x: Tensor, ids: Tensor, slots: Tensor, deep: Tensor) -> Tensor:
        """Through [1]'s own blocks at full length, (B, T, w) -> (B, T, w)."""
        mask = self.home.attn_mask
        if self._masks_padding:
            padding = self.home._build_additive_mask(ids.to(self.device), x.shape[1], x.dtype)  # (B * heads, T, T)
            mask = padding if mask is None else mask[: x.shape[1], : x.shape[1]] + padding
        for number, block in enumerate(self.blocks):
            if 0 < number <= len(deep):
                x = insert(x, slots, deep[number - 1])
            x = block(x, attn_mask=mask)
        return x

    def continued(self, x: Tensor, slots: Tensor, deep: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Through a causal tower, after a prefix whose keys and values are known.

        Args:
            x: (B, S, w).
            slots: (B, S), see `insert`.
            deep: (D, n, w) tokens that are inserted at blocks 1..D.
            before: (L, 2, heads, P, w / heads) keys and values of the shared prefix in each block; P may be 0.

        Returns:
            The blocks' output (B, S, w), and the keys and values of the first text's tokens, shaped as `before`.
        """
        keys_and_values = []
        with OneDnnLayers(module for block in self.blocks for module in block.mlp).used():
            for number, block in enumerate(self.blocks):
                if 0 < number <= len(deep):
                    x = insert(x, slots, deep[number - 1])
                x, key, value = causal_block(block, x, before[number])
                keys_and_values.append(torch.stack([key[:, 0], value[:, 0]]))
        return x, torch.stack(keys_and_values)

    def no_prefix(self) -> Tensor:
        """`before` of texts that share no prefix."""
        heads = self.blocks[0].attn.num_heads
        return torch.zeros(len(self.blocks), 2, heads, 0, self.width // heads, device=self.device)

    def project(self, x: Tensor) -> Tensor:
        """Unit features of the pooled tokens, (B, w) -> (B, d), in float32 at least."""
        x = self.home.ln_final(x)
        projection = self.home.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Module) else x @ projection
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)

    def saved_bytes(self, length: int, before: int, full_length: bool) -> int:
        """Bytes that one text of `length` tokens after `before` shared ones keeps for its backward pass.

        Per token and block: the inputs of the two norms (2 w), queries, keys and values (3 w), the input of the
        activation (m, the MLP's width; a sigmoid-weighted activation keeps its sigmoid too), and either the attention
        weights (heads * (before + length), `continued`) or the attention's output (w, `full_length`). Frozen linear
        layers keep nothing, because their gradient needs only their weights. ViT-B/16 (w 512, m 2048, 8 heads, 12
        blocks) keeps 18.0 MiB for 77 tokens, and 1.5 MiB for 7 tokens after 17 shared ones.
        """
        block = self.blocks[0]
        w = self.width
        m = getattr(getattr(block.mlp, "c_fc", None), "out_features", 4 * w)
        activation = m if any(isinstance(part, nn.GELU) for part in block.mlp) else 2 * m
        attention = w if full_length else block.attn.num_heads * (before + length)
        item = max(4, self.home.token_embedding.weight.element_size())
        return len(self.blocks) * length * (5 * w + activation + attention) * item


def insert(x: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """Insert learned tokens.

    Args:
        x: (B, T, w).
        slots: (B, T) index of the token for a position, -1 for none; positions with indices of n or more keep `x`.
        tokens: (n, w) or (B, n, w).

    Returns:
        (B, T, w).
    """
    n = tokens.shape[-2]
    row, column = ((slots >= 0) & (slots < n)).nonzero(as_tuple=True)
    if len(row) == 0:
        return x
    slot = slots[row, column].to(x.device)
    row, column = row.to(x.device), column.to(x.device)
    # One copy of the tokens per text: no index occurs twice, so the backward pass adds in a fixed order.
    values = tokens.expand(len(x), -1, -1)[row, slot]
    return x.index_put((row, column), values.to(x.dtype))


def causal_block(block: Any, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One of [1]'s blocks with a causal mask, for tokens after a shared prefix.

    softmax([q K', q k']) [V; v] with the shared K, V (heads, P, h) and the text's own k, v (heads, B, S, h). q K' is
    one matrix product per head over all tokens of all texts, and K, V are kept once.

    Args:
        block: of a tower for which `TextTower.causal` is true.
        x: (B, S, w).
        before: (2, heads, P, h) keys and values of the prefix; P may be 0.

    Returns:
        The block's output, and the keys and values of `x`, (heads, B, S, h) each.
    """
    attention = block.attn
    B, S, w = x.shape
    heads, P = attention.num_heads, before.shape[2]
    joint = linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)  # (B, S, 3 w)
    q, k, v = joint.view(B, S, 3, heads, w // heads).permute(2, 3, 0, 1, 4).contiguous()  # (heads, B, S, h) each
    if hasattr(attention, "ln_q"):
        q, k = attention.ln_q(q), attention.ln_k(k)
    scale = (w // heads) ** -0.5
    future = torch.ones(S, S, dtype=torch.bool, device=x.device).triu(1)
    scores = (q @ k.transpose(-1, -2)).masked_fill(future, float("-inf"))  # (heads, B, S, S)
    if P:
        shared = q.flatten(1, 2) @ before[0].to(q.dtype).transpose(-1, -2)  # (heads, B * S, P)
        scores = torch.cat([shared.view(heads, B, S, P), scores], -1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = (scores * scale).softmax(-1, dtype=exact).to(v.dtype)  # (heads, B, S, P + S)
    out = weights[..., P:] @ v  # (heads, B, S, h)
    if P:
        out = out + (weights[..., :P].flatten(1, 2) @ before[1].to(v.dtype)).view_as(out)
    if getattr(attention, "head_scale", None) is not None:
        out = out * attention.head_scale[:, None]
    out = out.permute(1, 2, 0, 3).reshape(B, S, w)
    if hasattr(attention, "ln_inner"):
        out = attention.ln_inner(out)
    out = linear(out, attention.out_proj.weight, attention.out_proj.bias)
    if hasattr(block, "ln_attn"):
        out = block.ln_attn(out)
    x = x + block.ls_1(out)
    return x + block.ls_2(block.mlp(block.ln_2(x))), k, v


def _is_causal(mask: Tensor | None, length: int) -> bool:
    if mask is None or mask.shape != (length, length):
        return False
    return torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1))


def _is_known(block: nn.Module) -> bool:
    """Whether `causal_block` computes the same as this block."""
    from open_clip import transformer

    if type(block) is transformer.ResidualAttentionBlock:
        attention: Any = block.attn
        return (
            type(attention) is nn.MultiheadAttention
            and not hasattr(block, "ln_1_kv")
            and attention.in_proj_weight is not None
            and attention.bias_k is None
            and not attention.add_zero_attn
        )
    if type(block) is transformer.CustomResidualAttentionBlock:
        custom: Any = block.attn
        return type(custom) is transformer.Attention and custom.logit_scale is None
    return False
