"""Text features of class names with a learned context, exactly, at a cost that allows thousands of classes.

[0] Zhou, Yang, Loy, Liu. Learning to Prompt for Vision-Language Models. IJCV 2022.
    Khattak, Rasheed, Maaz, Khan, Khan. MaPLe: Multi-modal Prompt Learning. CVPR 2023 (deep prompts).
[1] github.com/KaiyangZhou/CoOp, trainers/coop.py; github.com/muzairkhattak/multimodal-prompt-learning, clip/model.py

    end:     start, context, name, ".", end              middle:  start, half, name, other half, ".", end
    front:   start, name, context, ".", end              deep:    at blocks 1..D new tokens take the context's places

In [1] every step runs all classes at the tower's full length and keeps all activations for the backward pass. Three
savings, none of which changes a feature or a gradient beyond rounding:
    cut      a chunk of classes stops at its last end-of-text token              (causal towers)
    prefix   the tokens that all prompts begin with are computed once            (causal towers)
    chunks   the graph is not kept; the backward pass computes each chunk again  (all towers)

Differs from [1] in: the fixed words after a partly learned context ("of a" after two learned tokens in MaPLe) are
passed as context vectors that are not learned; the features are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from imbalance_vlm.components.ranges import Count, Positive
from imbalance_vlm.encoders.base import autocast
from imbalance_vlm.encoders.class_chunks import one_pass, pack, two_pass
from imbalance_vlm.encoders.prompt_layout import Layout, Position, Prompts, Tokens
from imbalance_vlm.encoders.text_tower import TextTower
from imbalance_vlm.errors import InputError, one_of

Saving = Literal["cut", "prefix", "chunks"]
SAVINGS: tuple[Saving, ...] = get_args(Saving)

MOST_AT_ONCE = 256
"""Most classes in a chunk: larger ones are no faster, and pad short names to longer ones."""


class PromptedText:
    """The text features of fixed class names, as a function of the context.

    It has no parameters and is not a module, so that a module that learns a context saves the context alone. The text
    tower of the encoder is frozen in place.

    Args:
        encoder: one whose `module` has open_clip's text tower, with its `tokenizer`; its precision is used.
        class_names: one per class; "_" is read as a space.
        position: of the name: at the end of the context, in the middle of it, or in front of it.
        suffix: follows the name directly.
        memory_gb: GiB that the text tower may keep for the backward pass; this decides the size of the chunks.
        chunk: classes per chunk; None for as many as `memory_gb` allows.
        savings: exact savings to use, as far as the tower allows (`self.savings` are those in use). () is the method of
            the papers' code: full length, all classes at once.

    Raises:
        InputError: an encoder whose text tower takes no context, or no class names.
    """

    def __init__(
        self,
        encoder: Any,
        class_names: Sequence[str],
        *,
        position: Position = "end",
        suffix: str = ".",
        memory_gb: Positive = 2.0,
        chunk: Count | None = None,
        savings: Sequence[Saving] = SAVINGS,
    ) -> None:
        tokenizer = getattr(encoder, "tokenizer", None)
        if tokenizer is None:
            raise InputError(
                "prompts need an encoder with a text tower and its `tokenizer`, "
                f"'{getattr(encoder, 'name', encoder)}' has none; choose an open_clip encoder"
            )
        for value, allowed in ((position, get_args(Position)), *((saving, SAVINGS) for saving in savings)):
            if value not in allowed:
                raise InputError(f"a prompt's position or saving must be one of {one_of(allowed)}, got {value!r}")
        if not class_names:
            raise InputError("`class_names` must hold at least one name, got none")
        self.tower = TextTower(encoder.module, encoder.name)
        self.class_names = [name.replace("_", " ") for name in class_names]
        self.memory_bytes: float = memory_gb * 2**30
        self.chunk: int | None = chunk
        self.savings: frozenset[str] = frozenset(savings) if self.tower.causal else frozenset(savings) & {"chunks"}
        self._precision: str = encoder.precision
        self._tokens = Tokens(tokenizer, self.tower.context_length)
        self._prompts = Prompts(self.tower, self._tokens, self.class_names, position, suffix)

    @property
    def _full_length(self) -> bool:
        """Whether prompts run through open_clip's own blocks."""
        return not self.savings & {"cut", "prefix"}

    @property
    def width(self) -> int:
        """Width of a context token."""
        return self.tower.width

    @property
    def depth(self) -> int:
        """Blocks of the text tower; deep prompts are possible in all but the first."""
        return len(self.tower.blocks)

    def words_to_context(self, words: str) -> Tensor:
        """Token embeddings of words, (n, w): initial values of a context of n tokens.

        Raises:
            InputError: no words.
        """
        tokens = self._tokens([words.replace("_", " ")])[0]
        if not tokens:
            raise InputError("a context from words must have at least one token, got none; give words or `n_ctx`")
        weight: Tensor = self.tower.home.token_embedding.weight
        return weight.detach()[torch.tensor(tokens, device=weight.device)].clone()

    def __call__(self, context: Tensor, deep: Tensor | Sequence[Tensor] = (), rows: Tensor | None = None) -> Tensor:
        """Unit text features, differentiable with respect to `context` and `deep`.

        Args:
            context: (n_ctx, w), or (C, n_ctx, w) for one context per class.
            deep: (D, n, w), or D tensors (n, w): tokens that replace the first n context tokens at the input of blocks
                1..D.
            rows: class indices to encode, each at most once; None for all.

        Returns:
            (C, d), or (len(rows), d), in float32 at least.

        Raises:
            InputError: shapes that do not fit, or a prompt longer than the tower reads.
        """
        return self._features(context, self._deep(deep), rows, 1)

    def per_image(self, contexts: Tensor, deep: Tensor | Sequence[Tensor] = (), rows: Tensor | None = None) -> Tensor:
        """Features for one context per image, (B, n_ctx, w) -> (B, C, d), one image after the other."""
        if contexts.ndim != 3 or contexts.shape[2] != self.width:
            raise InputError(
                f"contexts per image must have the shape (images, n_ctx, {self.width}), got {tuple(contexts.shape)}"
            )
        tokens = self._deep(deep)
        return torch.stack([self._features(context, tokens, rows, len(contexts)) for context in contexts])

    def layout(self, n_ctx: int) -> Layout:
        """The prompts with `n_ctx` context tokens.

        Raises:
            InputError: a prompt longer than the tower reads.
        """
        return self._prompts.layout(n_ctx)

    def check(self, n_ctx: int) -> None:
        """Check the prompts with `n_ctx` context tokens; call it before any work depends on them.

        Raises:
            InputError: a prompt longer than the tower reads, or two classes with the same prompt.
        """
        self._prompts.check(n_ctx)

    def kept_bytes(self, n_ctx: int) -> int:
        """Bytes that the text tower keeps for the backward pass of a step with a shared context, by arithmetic."""
        layout = self.layout(n_ctx)
        rows = torch.arange(len(layout.ids))
        chunks, size = self._chunks(layout, rows, layout.shared if "prefix" in self.savings else 0)
        return size if size <= self._most_kept(len(rows)) else max(size * len(chunk) // len(rows) for chunk in chunks)

    def _deep(self, deep: Tensor | Sequence[Tensor]) -> Tensor:
        if not isinstance(deep, Tensor):
            deep = torch.stack(list(deep)) if len(deep) else torch.zeros(0, 0, self.width, device=self.tower.device)
        if deep.ndim != 3 or deep.shape[2] != self.width or len(deep) >= self.depth:
            raise InputError(
                f"`deep` must have the shape (D, n, {self.width}) with D at most {self.depth - 1}, one per block "
                f"after the first, got {tuple(deep.shape)}"
            )
        return deep

    def _check(self, context: Tensor, deep: Tensor) -> None:
        C, w = len(self.class_names), self.width
        if context.ndim not in (2, 3) or context.shape[-1] != w or (context.ndim == 3 and len(context) != C):
            raise InputError(
                f"`context` must have the shape (n_ctx, {w}), or ({C}, n_ctx, {w}) for one context per class, "
                f"got {tuple(context.shape)}"
            )
        if len(deep) and deep.shape[1] > context.shape[-2]:
            raise InputError(
                f"`deep` must have at most as many tokens as the context, {context.shape[-2]}, whose places they take, "
                f"got {deep.shape[1]}"
            )

    def _rows(self, rows: Tensor) -> Tensor:
        C = len(self.class_names)
        if rows.ndim != 1 or len(rows.unique()) != len(rows) or not bool(((rows >= 0) & (rows < C)).all()):
            raise InputError(
                f"`rows` must be class indices from 0 to {C - 1}, each at most once, got {rows.tolist()}; "
                "use torch.unique"
            )
        return rows.cpu()

    def _features(self, context: Tensor, deep: Tensor, rows: Tensor | None, times: int) -> Tensor:
        """Features of the rows; `times` is the number of calls before the backward pass."""
        self._check(context, deep)
        layout = self.layout(context.shape[-2])
        rows = torch.arange(len(layout.ids)) if rows is None else self._rows(rows)
        per_class = context.ndim == 3
        with autocast(self.tower.device, "bf16") if self._precision == "bf16" else nullcontext():
            before = self.tower.no_prefix()
            if "prefix" in self.savings:
                first = layout.shared_without if per_class else layout.shared
                before = self._prefix(layout, first, context[0] if per_class else context, deep)
            chunks, keeps = self._chunks(layout, rows, before.shape[3])
            order = torch.cat(chunks)
            encode = _Encode(self.tower, layout, "cut" in self.savings, self._full_length)
            fits = keeps * times <= self._most_kept(len(rows) * times)
            passes = one_pass if fits or not torch.is_grad_enabled() else two_pass
            parts = [rows[chunk] for chunk in chunks]
            features = passes(encode, parts, (False, per_class, False), before, context, deep)
        return features[order.argsort().to(features.device)]  # (len(rows), d)

    def _prefix(self, layout: Layout, first: int, context: Tensor, deep: Tensor) -> Tensor:
        """Keys and values of the first tokens, which all prompts share, (L, 2, heads, first, w / heads)."""
        if first == 0:
            return self.tower.no_prefix()
        slots = layout.slots[:1, :first]
        x = self.tower.embed(layout.ids[:1, :first], slots, context)
        return self.tower.continued(x, slots, deep, self.tower.no_prefix())[1]

    def _chunks(self, layout: Layout, rows: Tensor, before: int) -> tuple[list[Tensor], int]:
        """Positions in `rows` chunk by chunk, and the bytes that the backward pass would keep of all of them."""
        stops = layout.pooled[rows] + 1 if "cut" in self.savings else torch.full_like(rows, layout.ids.shape[1])
        lengths = (stops - before).tolist()
        cost = {length: self.tower.saved_bytes(length, before, self._full_length) for length in set(lengths)}
        if "chunks" not in self.savings:
            packed = pack(lengths, len(lengths), lambda count, length: True)
        elif self.chunk is not None:
            packed = pack(lengths, self.chunk, lambda count, length: True)
        else:
            packed = pack(lengths, MOST_AT_ONCE, lambda count, length: count * cost[length] <= self.memory_bytes)
        size = sum(len(chunk) * cost[lengths[chunk[-1]]] for chunk in packed)
        return [torch.tensor(chunk) for chunk in packed], size

    def _most_kept(self, prompts: int) -> float:
        """Most bytes to keep for which a single pass over this number of prompts is used."""
        if "chunks" not in self.savings:
            return float("inf")
        if self.chunk is not None:
            return float("inf") if prompts <= self.chunk else 0.0
        return self.memory_bytes


@dataclass(frozen=True)
class _Encode:
    """The features of some classes from the keys and values of the prefix, their context and the deep prompts."""

    tower: TextTower
    layout: Layout
    cut: bool
    full_length: bool

    def __call__(self, rows: Tensor, before: Tensor, context: Tensor, deep: Tensor) -> Tensor:
        ids, slots, pooled = self.layout.ids[rows], self.layout.slots[rows], self.layout.pooled[rows]
        first = before.shape[3]
        if self.cut:
            stop = int(pooled.max()) + 1
            ids, slots = ids[:, :stop], slots[:, :stop]
        ids, slots = ids[:, first:], slots[:, first:]
        x = self.tower.embed(ids, slots, context, first)  # (B, S, w)
        x = (
            self.tower.full_length(x, ids, slots, deep)
            if self.full_length
            else self.tower.continued(x, slots, deep, before)[0]
        )
        positions = (pooled - first).to(x.device)
        return self.tower.project(x[torch.arange(len(rows), device=x.device), positions])  # (B, d)
