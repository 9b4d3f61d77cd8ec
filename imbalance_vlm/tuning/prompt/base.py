"""What all prompt methods share: a head whose classifier is the text tower's reading of a learned context.

[0] Zhou, Yang, Loy, Liu. Learning to Prompt for Vision-Language Models. IJCV 2022.
[1] github.com/KaiyangZhou/CoOp, trainers/coop.py

    z_c = exp(logit_scale) * cos(f, g(v, name_c))       v: n_ctx vectors in place of words, g: the frozen text tower

Differs from [1] in: words to start from may be any number, of which each token becomes a vector; a prompt that is too
long is refused; image features come from the cache, augmented in k fixed ways in place of a new one each epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, Natural, Part, Positive
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.encoders.prompt_layout import Position
from imbalance_vlm.encoders.prompted_text import PromptedText
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Task, Tuning

DEFAULT_CONTEXT = 4
"""Context tokens where neither words nor a number are given."""


class SharedText(PromptedText):
    """Prompted text that a copy of a head shares with the original: the frozen tower is never copied.

    Args:
        encoder: an open_clip encoder.
        class_names: one for each class.
        settings: of `PromptedText`.
    """

    def __init__(self, encoder: Any, class_names: Sequence[str], **settings: Any) -> None:
        super().__init__(encoder, class_names, **settings)
        self._encoder = encoder
        self._settings = settings
        self.suffix = str(settings.get("suffix", "."))

    def for_names(self, class_names: Sequence[str]) -> SharedText:
        """The same prompts of other names."""
        return SharedText(self._encoder, class_names, **self._settings)

    def fitting(self, class_names: Sequence[str], n_ctx: int) -> list[str]:
        """Those of the names whose prompts with `n_ctx` context tokens the tower can read."""
        tokens = self._tokens
        room = self.tower.context_length - len(tokens.start) - n_ctx - len(tokens.end)
        lengths = [len(name) for name in tokens([f"{name.replace('_', ' ')}{self.suffix}" for name in class_names])]
        return [name for name, length in zip(class_names, lengths, strict=True) if length <= room]

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedText:
        return self


class PromptHead(Head):
    """Cosine of an image feature to the text features of the class names behind a learned context.

    A subclass that learns more overrides `prompt` (deep prompts in the text tower), `embed` (prompts in the image
    tower) or `classify` (a context that depends on the image). What is trained, and nothing else, is a parameter.

    In evaluation the text features are computed once, without a gradient, and kept until a parameter changes.

    Args:
        prompted: the text features as a function of the context.
        context: where the context starts: (n_ctx, w), or (C, n_ctx, w) for a context for each class.
        scale: the model's exp(logit_scale).

    Raises:
        InputError: a context of another shape, or a prompt longer than the tower reads.
    """

    learns_text = True

    def __init__(self, prompted: SharedText, context: Tensor, scale: float) -> None:
        super().__init__()
        prompted.layout(context.shape[-2])  # refuses what is too long, before any work
        self.prompted = prompted
        self.scale = scale
        self.context = nn.Parameter(context.detach().clone())
        self._kept: tuple[tuple[tuple[int, int], ...], Tensor] | None = None

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        """The context, and the deep prompts (D, n, w) behind it, () without any: what `PromptedText` is called with."""
        return self.context, ()

    def text_features(self) -> Tensor:
        """(C, d) unit text features under the present context, which are `text` from then on."""
        if self.training:
            self.text, self._kept = self.prompted(*self.prompt()), None
            return self.text
        state = [*self.parameters(), *self.buffers()]
        now = tuple((value.data_ptr(), value._version) for value in state)
        if self._kept is None or self._kept[0] != now:
            with torch.no_grad():
                self._kept = now, self.prompted(*self.prompt())
        self.text = self._kept[1]
        return self.text

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.scale * self.text_features(), None

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.scale * embeddings @ self.text_features().to(embeddings.dtype).t()

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> PromptHead:
        """This head over other classes: the same parameters, not copies of them, and the other names behind them.

        Raises:
            InputError: a context for each class, no names, or a prompt longer than the tower reads.
        """
        if self.context.ndim == 3:
            raise InputError(
                "a prompt for other class names needs a context that all classes share, got one for each of "
                f"{len(self.context)} classes, and none for a new class; set tuning.csc to false"
            )
        other = copy.copy(self)
        other.prompted = self.prompted.for_names(class_names)
        other.prompted.layout(self.prompt()[0].shape[-2])
        return other

    def text_of(self, class_names: Sequence[str]) -> Callable[[], Tensor]:
        """A function that gives the text features of other names under the context of the moment, (M, d).

        The names are made into tokens now, once.
        """
        other = self.for_names(class_names)
        return lambda: other.prompted(*other.prompt())

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without features: those of a training step carry its graph."""
        return self.__dict__ | {"text": None, "_kept": None}


def starting_context(prompted: PromptedText, n_ctx: int | None, init: str | None, csc: bool = False) -> Tensor:
    """Where a context starts: the embeddings of words, or N(0, .02) from torch's global generator.

    Args:
        prompted: gives the width, the classes and the words' embeddings.
        n_ctx: context tokens; None for as many as the words have, or 4.
        init: words, or None.
        csc: a context for each class, all of which start from the same words.

    Returns:
        (n_ctx, w), or (C, n_ctx, w).

    Raises:
        InputError: words of another number of tokens than `n_ctx`.
    """
    weight = prompted.tower.home.token_embedding.weight
    classes = len(prompted.class_names)
    if init is None:
        shape = (n_ctx or DEFAULT_CONTEXT, prompted.width)
        context = 0.02 * torch.randn(classes, *shape) if csc else 0.02 * torch.randn(*shape)
        return context.to(weight)
    words = prompted.words_to_context(init)
    if n_ctx is not None and n_ctx != len(words):
        raise InputError(
            f"`tuning.n_ctx` must be left out or be the number of tokens of `tuning.init` '{init}', which is "
            f"{len(words)}, got {n_ctx}; for {n_ctx} tokens without words, set tuning.init to null"
        )
    return words.expand(classes, -1, -1) if csc else words


def check_task(task: Task) -> None:
    """Refuse what no prompt method can train on.

    Raises:
        InputError: no classes, a name twice, or features in another space than the text's.
    """
    if not task.class_names:
        raise InputError("prompts need at least one class to train on, got none; check data.classes and data.shots")
    seen: dict[str, int] = {}
    for number, name in enumerate(task.class_names):
        first = seen.setdefault(name.replace("_", " "), number)
        if first != number:
            raise InputError(
                f"class names must differ for prompts to tell classes apart, got '{name}' for class {first} and class "
                f"{number}; rename one of them"
            )
    if task.kind != "embedding":
        raise InputError(
            f"prompts need image features in the space of the text features, 'embedding', got '{task.kind}'; "
            "set encoder.features to embedding and head to text"
        )


class PromptTuning(Tuning):
    """A prompt method: its head is made of the task, in place of the recipe's (which must be `text`).

    A subclass writes `prompt_head`, and whatever else of `Tuning` it changes.

    Args:
        n_ctx: context tokens; None for as many as the words of `init` have, or 4 without words.
        init: words that the context starts from, or None for N(0, .02).
        position: where the name stands: behind the context ("end"), in the middle of it, or in front of it.
        suffix: what stands directly behind the name; the papers' full stop halves the accuracy of a model that was
            trained on captions without one.
        csc: a context for each class, in place of one that all share.
        views: 0 trains on the model's own view of each image; k > 0 on k random crops of it (mirrored too, where the
            dataset's classes survive that), epoch e on crop e mod k.
        min_scale: smallest share of the image that a crop shows.
        memory_gb: what the backward pass may keep of the text tower, in GiB; it decides how many classes go through it
            at once. The result does not depend on it.
        chunk: classes at once; None lets `memory_gb` decide.
    """

    def __init__(
        self,
        *,
        n_ctx: Count | None = None,
        init: str | None = "a photo of a",
        position: Position = "end",
        suffix: str = ".",
        csc: bool = False,
        views: Natural = 4,
        min_scale: Part = 0.08,
        memory_gb: Positive = 2.0,
        chunk: Count | None = None,
    ) -> None:
        self.n_ctx = n_ctx
        self.init = init
        self.position = position
        self.suffix = suffix
        self.csc = csc
        self.views = views
        self.min_scale = min_scale
        self.memory_gb = memory_gb
        self.chunk = chunk

    def transforms(self, task: Task) -> list[View]:
        return view_transforms(task.encoder, self.views, self.min_scale, task.flips)

    def head(self, task: Task, plain: Callable[[], Head]) -> Head:
        check_task(task)
        prompted = self.prompted(task)
        return self.prompt_head(task, prompted, starting_context(prompted, self.n_ctx, self.init, self.csc))

    def prompted(self, task: Task) -> SharedText:
        """The text features of the task's classes as a function of the context."""
        return SharedText(
            task.encoder,
            task.class_names,
            position=self.position,
            suffix=self.suffix,
            memory_gb=self.memory_gb,
            chunk=self.chunk,
        )

    def prompt_head(self, task: Task, prompted: SharedText, context: Tensor) -> PromptHead:
        """The method's head around a starting context."""
        return PromptHead(prompted, context, task.encoder.logit_scale)
