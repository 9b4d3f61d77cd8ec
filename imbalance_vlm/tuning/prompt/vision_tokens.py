"""Learned tokens among those of an image, and the head that learns prompts in both towers.

[0] Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim. Visual Prompt Tuning. ECCV 2022.
    Khattak, Rasheed, Maaz, Khan, Khan. MaPLe: Multi-modal Prompt Learning. CVPR 2023.
[1] github.com/muzairkhattak/multimodal-prompt-learning, clip/model.py (VisionTransformer, ResidualAttentionBlock_IVLP)

    [class, patches, P_0] pass the norm before the blocks, as the image's own tokens do, and enter block 0
    [class, patches, P_i] enter block i < D: P_i takes the place of what block i - 1 made of P_(i-1)
    what the last block made of the prompts is left out

Where prompts stand makes no difference to attention: they have no position. Behind the image's own tokens, as in [1],
these stay where poolings and decoders look for them.

Differs from [1] in: any of the towers that `imbalance_vlm/tuning/peft/towers.py` knows, also one that pools its tokens;
a depth beyond the tower's is the tower's; the width is the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, Natural, Part, Positive
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.peft.towers import image_tower, transformer_tower
from imbalance_vlm.tuning.prompt.base import PromptHead, PromptTuning, SharedText, check_task

STD = 0.02
"""Standard deviation that tokens without words start with, in both towers."""


class VisionTokens:
    """The image features of an encoder as a function of images and of tokens put among theirs.

    It holds no parameters and is no module: what learns tokens holds one of these, and a copy of that shares it. The
    tower is changed while a pass lasts and at no other time.

    Args:
        encoder: frozen; its precision is used.
        method: named in errors.

    Raises:
        InputError: an image tower that is no vision transformer, or one whose attention has no place for more tokens.
    """

    def __init__(self, encoder: Encoder, method: str) -> None:
        root = image_tower(encoder.module)
        tower = transformer_tower(root, method, adds_tokens=True)
        self.encoder = encoder
        self.blocks = [block.whole for block in tower.blocks]
        self.width = tower.width
        norm = getattr(root, "ln_pre", getattr(root, "norm_pre", None))
        self._norm: nn.Module = norm if isinstance(norm, nn.Module) else nn.Identity()

    @property
    def depth(self) -> int:
        """Blocks of the tower, each of which can get tokens."""
        return len(self.blocks)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code would not see the hooks come and go
    def __call__(self, pixels: Tensor, tokens: Sequence[Tensor], kind: str = "embedding") -> Tensor:
        """Features of preprocessed images, as `Encoder.image_features` gives them.

        Args:
            pixels: (B, 3, H, W).
            tokens: up to L tensors (n, w), for the tower's first blocks; () for the tower as it is.
            kind: see `imbalance_vlm.encoders.base.KINDS`.

        Raises:
            InputError: tokens of another width, or for more blocks than there are.
        """
        if len(tokens) > self.depth or any(one.ndim != 2 or one.shape[1] != self.width for one in tokens):
            raise InputError(
                f"`tokens` must be tensors of shape (n, {self.width}), one for each of at most {self.depth} blocks, "
                f"got {[tuple(one.shape) for one in tokens]}"
            )
        with self._inside(tokens):
            return self.encoder.image_features(pixels, kind)

    @contextmanager
    def _inside(self, tokens: Sequence[Tensor]) -> Iterator[None]:
        handles = []
        there = 0  # tokens that stand in the sequence already
        try:
            for number, (block, own) in enumerate(zip(self.blocks, tokens, strict=False)):
                norm = nn.Identity() if number else self._norm
                handles.append(block.register_forward_pre_hook(partial(_put, own, there, norm)))
                there = len(own)
            if tokens:
                handles.append(self.blocks[-1].register_forward_hook(partial(_take, there)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> VisionTokens:
        return self


def _put(tokens: Tensor, there: int, norm: nn.Module, block: nn.Module, args: Any) -> Any:
    """The inputs of a block with `tokens` (n, w) behind the image's own, in the place of the `there` last ones."""
    x, *more = args  # (B, T, w)
    own = norm(tokens.to(x.dtype)).expand(len(x), -1, -1)  # (B, n, w)
    return torch.cat([x[:, : x.shape[1] - there], own], dim=1), *more


def _take(there: int, block: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The output of the last block without the prompts."""
    return output[:, : output.shape[1] - there]


class TwoTowerHead(PromptHead):
    """A prompt head that reads images: deep prompts in the text tower, and tokens in the image tower.

    A subclass writes `vision`.

    Args:
        prompted: the text features as a function of the context.
        images: the image features as a function of their tokens.
        context: (n, w) where the learned tokens start.
        rest: (m, w) tokens behind them that stay as they are; m may be 0.
        depth: blocks of the text tower that learned tokens enter, the first among them.
        scale: the model's exp(logit_scale).
    """

    reads = "pixels"
    rest: Tensor

    def __init__(
        self, prompted: SharedText, images: VisionTokens, context: Tensor, rest: Tensor, depth: int, scale: float
    ) -> None:
        super().__init__(prompted, context, scale)
        prompted.layout(len(context) + len(rest))  # refuses what is too long, before any work
        self.images = images
        self.register_buffer("rest", rest.detach().clone(), persistent=False)  # made of words, not of training
        self.deep = nn.Parameter(normal(depth - 1, *context.shape, like=context))  # (D - 1, n, w)

    def vision(self) -> list[Tensor]:
        """Tokens (n', w') for the first blocks of the image tower, one tensor each."""
        raise NotImplementedError

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        return torch.cat([self.context, self.rest]), self.deep

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.images(features, self.vision()), dim=-1)

    @property
    def learns_embedding(self) -> bool:
        return True


def normal(*shape: int, like: Tensor) -> Tensor:
    """N(0, .02) from torch's global generator on the CPU, so that it is the same on every device."""
    return (STD * torch.randn(*shape)).to(like)


class TwoTowerTuning(PromptTuning):
    """Prompts in both towers, which are frozen otherwise; the head is made of the task, in place of the recipe's.

    A subclass writes `two_tower_head` and names itself.

    Args:
        n_ctx: learned tokens in the text tower; those of the words of `init` that go beyond them stay as they are.
        init: words that the context starts from, or None for N(0, .02).
        depth: blocks of each tower that get tokens of their own; of a shorter tower all.
        views: k random crops of each image (mirrored too, where the dataset's classes survive that), epoch e on crop
            e mod k; None for a new one at every epoch, 0 for the model's own view.
        min_scale: smallest share of the image that a crop shows.
        suffix: what stands directly behind the name.
        memory_gb: what the backward pass may keep of the text tower, in GiB; the result does not depend on it.
        chunk: classes at once; None lets `memory_gb` decide.
    """

    name: str
    reads_pixels = True

    def __init__(
        self,
        *,
        n_ctx: Count = 2,
        init: str | None = "a photo of a",
        depth: Count = 9,
        views: Natural | None = None,
        min_scale: Part = 0.08,
        suffix: str = ".",
        memory_gb: Positive = 2.0,
        chunk: Count | None = None,
    ) -> None:
        super().__init__(
            n_ctx=n_ctx, init=init, suffix=suffix, views=0, min_scale=min_scale, memory_gb=memory_gb, chunk=chunk
        )
        self.learned = n_ctx
        self.depth = depth
        self.crops = views
        self._flags: list[tuple[nn.Parameter, bool]] = []

    def transforms(self, task: Task) -> list[View]:
        return pixel_transforms(task, self.crops, self.min_scale)

    def head(self, task: Task, plain: Callable[[], Head]) -> Head:
        check_task(task)
        module = getattr(task.encoder, "module", nn.Identity())
        self._flags = [(value, value.requires_grad) for value in module.parameters()]  # also of towers refused below
        prompted = self.prompted(task)
        images = VisionTokens(task.encoder, self.name)
        task.encoder.module.requires_grad_(False)
        none = prompted.tower.home.token_embedding.weight.detach()[:0]
        words = none if self.init is None else prompted.words_to_context(self.init)
        missing = max(self.learned - len(words), 0)
        context = torch.cat([words[: self.learned], normal(missing, prompted.width, like=words)])
        return self.two_tower_head(task, prompted, images, context, words[self.learned :])

    def two_tower_head(
        self, task: Task, prompted: SharedText, images: VisionTokens, context: Tensor, rest: Tensor
    ) -> TwoTowerHead:
        """The method's head; see `TwoTowerHead` for what it is made of."""
        raise NotImplementedError

    def close(self) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._flags = []


def pixel_transforms(task: Task, views: int | None, min_scale: float) -> list[View]:
    """As many crops as asked for; a tower that runs at every step anyway can have a new one at every epoch."""
    return view_transforms(task.encoder, task.epochs if views is None else views, min_scale, task.flips)
