"""Prompt methods that learn text: the classifier is the text features of the class names under a learned context.

[0] Zhou, Yang, Loy, Liu. Learning to Prompt for Vision-Language Models. IJCV 2022.
[1] github.com/KaiyangZhou/CoOp, trainers/coop.py

    z_c = exp(logit_scale) * cos(f, g(v, name_c))       v: n_ctx vectors instead of words, g: the frozen text tower

Differs from [1] in: the context may start from any number of words, each token of which becomes a vector; a prompt that
is too long is refused; image features come from the cache, with k fixed crops instead of a new one in each epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import RunText
from imbalance_vlm.encoders.prompt_layout import Position
from imbalance_vlm.encoders.prompted_text import PromptedText
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Tuning, TuningContext
from imbalance_vlm.tuning.prompt.settings import TextMemory


class SharedText(PromptedText):
    """Prompted text that copies of a head share, so that the frozen tower is never copied.

    Args:
        encoder: an open_clip encoder.
        class_names: one per class.
        position: place of the class name in the prompt.
        suffix: text directly after the class name.
        memory: limits on the memory of the text tower.
    """

    def __init__(
        self,
        encoder: Any,
        class_names: Sequence[str],
        *,
        position: Position = "end",
        suffix: str = ".",
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__(
            encoder, class_names, position=position, suffix=suffix, memory_gb=memory.memory_gb, chunk=memory.chunk
        )
        self._encoder = encoder
        self._position: Position = position
        self._suffix = suffix
        self._memory = memory

    def for_names(self, class_names: Sequence[str]) -> SharedText:
        """The same prompts with other class names."""
        return SharedText(self._encoder, class_names, position=self._position, suffix=self._suffix, memory=self._memory)

    def fitting(self, class_names: Sequence[str], n_ctx: int) -> list[str]:
        """The names whose prompts with `n_ctx` context tokens are short enough for the tower."""
        tokens = self._tokens
        room = self.tower.context_length - len(tokens.start) - n_ctx - len(tokens.end)
        lengths = [len(name) for name in tokens([f"{name.replace('_', ' ')}{self._suffix}" for name in class_names])]
        return [name for name, length in zip(class_names, lengths, strict=True) if length <= room]

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedText:
        return self


class PromptHead(Head):
    """Cosine of an image feature to the text features of the class names under a learned context.

    A subclass that learns more overrides `prompt` (deep prompts in the text tower), `embed` (prompts in the image
    tower) or `classify` (a context that depends on the image). All parameters are trained.

    In evaluation mode the text features are computed without gradient, and only after a parameter has changed.

    Args:
        prompted: the text features as a function of the context.
        context: start of the context: (n_ctx, w), or (C, n_ctx, w) for a context per class.
        logit_scale: the model's exp(logit_scale).

    Raises:
        InputError: a context of another shape, a prompt longer than the tower reads, or two classes with one prompt.
    """

    learns_text = True
    logit_scale: float

    def __init__(self, prompted: SharedText, context: Tensor, logit_scale: float) -> None:
        super().__init__()
        prompted.check(context.shape[-2])
        self.prompted = prompted
        self.logit_scale = logit_scale
        self.context = nn.Parameter(context.detach().clone())
        self._cached: tuple[tuple[tuple[int, int], ...], Tensor] | None = None  # state of the parameters, text features

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        """The arguments of `PromptedText`: the context, and the deep prompts (D, n, w) or () for none."""
        return self.context, ()

    def text_features(self) -> Tensor:
        """(C, d) unit text features under the current context; they are also stored as `text`."""
        if self.training:
            self.text, self._cached = self.prompted(*self.prompt()), None
            return self.text
        values = [*self.parameters(), *self.buffers()]
        state = tuple((value.data_ptr(), value._version) for value in values)
        if self._cached is None or self._cached[0] != state:
            with torch.no_grad():
                self._cached = state, self.prompted(*self.prompt())
        self.text = self._cached[1]
        return self.text

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.logit_scale * self.text_features(), None

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.logit_scale * embeddings @ self.text_features().to(embeddings.dtype).t()

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> PromptHead:
        """This head for other classes; it shares the parameters, instead of copying them.

        Args:
            class_names: names of the other classes.
            text_features: not used: the names are encoded under the learned context.

        Raises:
            InputError: a context per class, no names, or a prompt longer than the tower reads.
        """
        if self.context.ndim == 3:
            raise InputError(
                "a prompt for other class names needs a context that all classes share, got one for each of "
                f"{len(self.context)} classes, and none for a new class; set tuning.csc to false"
            )
        other = copy.copy(self)
        other.prompted = self.prompted.for_names(class_names)
        other.prompted.check(self.prompt()[0].shape[-2])
        return other

    def text_of(self, class_names: Sequence[str]) -> Callable[[], Tensor]:
        """A function that computes the text features (M, d) of other names under the current context.

        The names are tokenized once, here.
        """
        other = self.for_names(class_names)
        return lambda: other.prompted(*other.prompt())

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without text features, since those of a training step hold its graph."""
        return self.__dict__ | {"text": None, "_cached": None}


class PromptText:
    """The text side of a run with a prompt head; see `RunText` for the protocol.

    Args:
        context: provides the names, the sentences and the frozen tower.
        head: provides the learned prompt.
    """

    def __init__(self, context: TuningContext, head: PromptHead) -> None:
        self.class_names = context.class_names
        self.novel_names = context.novel_names
        self.templates = context.templates
        self.seed = context.seed
        self._text_features = context.text_features
        self._head = head

    def frozen(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        return self._text_features(names, templates)

    def learned(self, names: Sequence[str]) -> Callable[[], Tensor]:
        return self._head.text_of(names)

    def fitting(self, names: Sequence[str]) -> list[str]:
        return self._head.prompted.fitting(names, self._head.prompt()[0].shape[-2])


class PromptTuning(Tuning):
    """Base class of prompt methods that learn text. Their head replaces the recipe's, which must be `text`.

    A subclass implements `prompt_head`. The encoder is frozen until `close`.
    """

    def __init__(self) -> None:
        self._flags: list[tuple[nn.Parameter, bool]] = []

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        check_prompt_context(context)
        module = getattr(context.encoder, "module", nn.Identity())  # an encoder without one is refused below
        self._flags = [(value, value.requires_grad) for value in module.parameters()]
        head = self.prompt_head(context)
        module.requires_grad_(False)
        return head

    def prompt_head(self, context: TuningContext) -> PromptHead:
        """The head of the method.

        Raises:
            InputError: settings, class names or an encoder that the method cannot train with.
        """
        raise NotImplementedError

    def text(self, context: TuningContext, head: Head) -> RunText | None:
        return PromptText(context, head) if isinstance(head, PromptHead) else None

    def close(self) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._flags = []


def check_prompt_context(context: TuningContext) -> None:
    """Refuse a run in which no prompt method can be trained.

    Raises:
        InputError: no classes, a class name that occurs twice, or features in another space than the text's.
    """
    if not context.class_names:
        raise InputError("prompts need at least one class to train on, got none; check data.classes and data.shots")
    first_numbers: dict[str, int] = {}
    for number, name in enumerate(context.class_names):
        first = first_numbers.setdefault(name.replace("_", " "), number)
        if first != number:
            raise InputError(
                f"class names must differ for prompts to tell classes apart, got '{name}' for class {first} and class "
                f"{number}; rename one of them"
            )
    if context.kind != "embedding":
        raise InputError(
            f"prompts need image features in the space of the text features, 'embedding', got '{context.kind}'; "
            "set encoder.features to embedding and head to text"
        )
