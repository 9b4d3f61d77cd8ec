"""Settings that several prompt methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from imbalance_vlm.components.ranges import ComputeOnly, Count, Positive
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.encoders.prompt_layout import Position


@dataclass(frozen=True, kw_only=True)
class Wording(SettingGroup):
    """Words of a prompt.

    Args:
        init: words that the context starts from; "random" or null for a start from N(0, .02).
        suffix: text directly after the class name. The papers' full stop halves the accuracy of a model that was
            trained on captions without one.
    """

    init: str | None = "a photo of a"
    suffix: str = "."

    @property
    def words(self) -> str | None:
        """The words that the context starts from; None for a random start."""
        return None if self.init == "random" else self.init


@dataclass(frozen=True, kw_only=True)
class Prompt(Wording):
    """A prompt whose context is learned at the input of the text tower.

    Args:
        n_ctx: number of context tokens; null for as many as `init` has, or 4 without words.
        position: place of the class name: after the context ("end"), in the middle of it, or before it ("front").
    """

    n_ctx: Count | None = None
    position: Position = "end"


@dataclass(frozen=True, kw_only=True)
class DeepPrompt(Wording):
    """Prompts that are learned at several depths of both towers.

    Args:
        n_ctx: number of learned tokens in the text tower; further words of `init` stay frozen.
        depth: number of blocks of each tower that receive their own tokens; all blocks of a tower that has fewer.
    """

    n_ctx: Count = 2
    depth: Count = 9


@dataclass(frozen=True, kw_only=True)
class TextMemory(SettingGroup):
    """Limits on the memory of the text tower; the results do not depend on them.

    Args:
        memory_gb: memory in GiB that the text tower may keep for the backward pass; it determines how many classes are
            encoded at once.
        chunk: number of classes that are encoded at once; null derives it from `memory_gb`.
    """

    memory_gb: Annotated[Positive, ComputeOnly] = 2.0
    chunk: Annotated[Count | None, ComputeOnly] = None
