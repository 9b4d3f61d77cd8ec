"""The prompts of all classes as tokens: the places of the context and of the name, and the token that is the feature.

[1] github.com/KaiyangZhou/CoOp, trainers/coop.py (PromptLearner)

Differs from [1] in: any tokenizer of open_clip can be used, its start, end and padding tokens are derived from its
output; a prompt that is too long is refused instead of truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from imbalance_vlm.encoders.text_tower import TextTower
from imbalance_vlm.encoders.tokenizers import equal_classes
from imbalance_vlm.errors import InputError

Position = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class Layout:
    """The prompts of all classes for a number of context tokens, on the CPU.

    Args:
        ids: (C, T) tokens, with a placeholder where the context goes.
        slots: (C, T) index of the context token at a position, -1 for none.
        pooled: (C,) position of the token that becomes the feature.
        shared: number of leading tokens that all prompts share, if they share the context.
        shared_without: the same if each class has its own context.
    """

    ids: Tensor
    slots: Tensor
    pooled: Tensor
    shared: int
    shared_without: int


class Tokens:
    """The tokens of texts without those that a tokenizer adds, which are derived from its output.

    The tokenizer puts `start` before a text, `end` after it and `pad` at the end; `placeholder` is an ordinary token.

    Args:
        tokenizer: of open_clip.
        context_length: of the text tower.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._room = 4 * context_length + 64  # more than a tower reads, so that a long name is refused, not truncated
        empty, letter = self._rows(["", "x"])
        self.pad = int(empty[-1])
        added, with_letter = self._stripped(empty), self._stripped(letter)
        start = 0
        while start < min(len(added), len(with_letter)) and added[start] == with_letter[start]:
            start += 1
        self.start = added[:start]
        self.placeholder = with_letter[start]
        # A tokenizer that pads with its end token (SigLIP's) has one after the text, wherever the padding begins.
        self.end = added[start:] or [self.pad]
        self._after = len(added) - start

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        rows = []
        for begin in range(0, len(texts), 1024):
            rows += [self._stripped(row) for row in self._rows(texts[begin : begin + 1024])]
        return [row[len(self.start) : len(row) - self._after] for row in rows]

    def _rows(self, texts: Sequence[str]) -> Tensor:
        rows: Tensor = self._tokenizer(list(texts), context_length=self._room)
        return rows

    def _stripped(self, row: Tensor) -> list[int]:
        inside = (row != self.pad).nonzero()
        return row[: int(inside[-1]) + 1].tolist() if len(inside) else []


class Prompts:
    """The prompts of fixed class names.

    Args:
        tower: the text tower that reads them.
        tokens: of its tokenizer.
        class_names: as a person would write them.
        position: of the name: at the end of the context, in the middle of it, or in front of it.
        suffix: follows the name directly, such as ".".
    """

    def __init__(
        self, tower: TextTower, tokens: Tokens, class_names: Sequence[str], position: Position, suffix: str = "."
    ) -> None:
        self.tower = tower
        self.tokens = tokens
        self.class_names = class_names
        self.position = position
        self._names = tokens([f"{name}{suffix}" for name in class_names])
        self._name_lengths = [len(name) for name in tokens(class_names)]
        self._layouts: dict[int, Layout] = {}

    def layout(self, n_ctx: int) -> Layout:
        """The prompts with `n_ctx` context tokens.

        Raises:
            InputError: a prompt longer than the tower reads.
        """
        if n_ctx not in self._layouts:
            self._layouts[n_ctx] = self._lay_out(n_ctx)
        return self._layouts[n_ctx]

    def _lay_out(self, n_ctx: int) -> Layout:
        ids = torch.full((len(self._names), self.tower.context_length), self.tokens.pad)
        slots = torch.full_like(ids, -1)
        first = len(self.tokens.start)
        for number, name in enumerate(self._names):
            places = self._places(number, n_ctx)
            words = iter(name)
            body = [self.tokens.placeholder if place >= 0 else next(words) for place in places]
            row = [*self.tokens.start, *body, *self.tokens.end]
            if len(row) > ids.shape[1]:
                raise self._too_long(n_ctx)
            ids[number, : len(row)] = torch.tensor(row)
            slots[number, first : first + len(places)] = torch.tensor(places)
        pooled = self.tower.pooled_at(ids)
        same = ((ids == ids[0]) & (slots == slots[0])).all(0)  # (T,), for all classes
        most = int(pooled.min())  # the pooled token is never shared, even if all names are the same
        return Layout(ids, slots, pooled, _leading(same, most), _leading(same & (slots < 0).all(0), most))

    def check(self, n_ctx: int) -> None:
        """Check the prompts with `n_ctx` context tokens that all classes share.

        Raises:
            InputError: a prompt longer than the tower reads, or two classes with the same prompt.
        """
        layout = self.layout(n_ctx)
        label_of: dict[bytes, int] = {}
        for label, row in enumerate(torch.cat([layout.ids, layout.slots], dim=1).numpy()):
            before = label_of.setdefault(row.tobytes(), label)
            if before != label:
                raise equal_classes(self.class_names, before, label)

    def _places(self, number: int, n_ctx: int) -> list[int]:
        """The context token at each place between start and end, -1 for a token of the name."""
        count = len(self._names[number])
        # The full stop begins after as many tokens as the name has without it, as in [1].
        name = count if self.position == "end" else min(self._name_lengths[number], count)
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[self.position]
        return [*range(before), *[-1] * name, *range(before, n_ctx), *[-1] * (count - name)]

    def _too_long(self, n_ctx: int) -> InputError:
        """The error about the longest name, whose remedy works for all classes."""
        name, first = max((len(tokens), -number) for number, tokens in enumerate(self._names))
        most, added = self.tower.context_length, len(self.tokens.start) + len(self.tokens.end)
        room = most - name - added
        remedy = f"n_ctx of at most {room}, or a shorter name" if room > 0 else "a shorter name"
        return InputError(
            f"a prompt must have at most {most} tokens for '{self.tower.name}', got {n_ctx + name + added} for class "
            f"{-first} ('{self.class_names[-first]}'): {n_ctx} of context, {name} of the name and its full stop, "
            f"{added} around them. Use {remedy}"
        )


def _leading(same: Tensor, most: int) -> int:
    """Number of leading true entries, at most `most`."""
    return min(int(same.int().cumprod(0).sum()), most)
