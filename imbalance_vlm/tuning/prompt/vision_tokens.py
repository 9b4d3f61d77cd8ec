"""Learned tokens among those of an image, and the head that learns prompts in both towers.

[0] Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim. Visual Prompt Tuning. ECCV 2022.
    Khattak, Rasheed, Maaz, Khan, Khan. MaPLe: Multi-modal Prompt Learning. CVPR 2023.
[1] github.com/muzairkhattak/multimodal-prompt-learning, clip/model.py (VisionTransformer, ResidualAttentionBlock_IVLP)

    [class, patches, P_0] pass the norm before the blocks, as the image's own tokens do, and enter block 0
    [class, patches, P_i] enter block i < D, where P_i replaces the outputs of block i - 1 for P_(i-1)
    the outputs of the last block for the prompts are removed

Attention does not depend on the order of tokens, and prompts have no position. They come after the image's own tokens,
as in [1], which then stay where poolings and decoders expect them.

Differs from [1] in: any of the towers that `imbalance_vlm/tuning/peft/towers.py` supports, including those that pool
their tokens; the depth is at most that of the tower; the width is the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.linear import OneDnnLayers
from imbalance_vlm.errors import InputError
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import PixelCrops
from imbalance_vlm.tuning.peft.towers import image_tower, transformer_tower
from imbalance_vlm.tuning.prompt.base import PromptHead, PromptTuning, SharedText
from imbalance_vlm.tuning.prompt.settings import DeepPrompt, TextMemory

STD = 0.02
"""Standard deviation of the start of tokens without words, in both towers."""


class VisionTokens:
    """The image features of an encoder as a function of images and of tokens inserted among theirs.

    It is not a module and has no parameters: heads that learn tokens hold one, and copies of a head share it. The tower
    is modified during a pass only.

    Args:
        encoder: frozen; its precision is used.
        method: name of the method, for errors.

    Raises:
        InputError: an image tower that is not a vision transformer, or whose attention cannot take more tokens.
    """

    def __init__(self, encoder: Encoder, method: str) -> None:
        root = image_tower(encoder.module)
        tower = transformer_tower(root, method, adds_tokens=True)
        self.encoder = encoder
        self._layers = OneDnnLayers(root.modules())
        self.blocks = [block.module for block in tower.blocks]
        self.width = tower.width
        norm = getattr(root, "ln_pre", getattr(root, "norm_pre", None))
        self._norm: nn.Module = norm if isinstance(norm, nn.Module) else nn.Identity()

    @property
    def depth(self) -> int:
        """Number of blocks of the tower, each of which can receive tokens."""
        return len(self.blocks)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code would ignore hooks that change
    def __call__(self, pixels: Tensor, tokens: Sequence[Tensor], kind: str = "embedding") -> Tensor:
        """Features of preprocessed images, as `Encoder.image_features` returns them.

        Args:
            pixels: (B, 3, H, W).
            tokens: up to L tensors (n, w) for the first blocks of the tower; () for the unchanged tower.
            kind: see `imbalance_vlm.encoders.base.KINDS`.

        Raises:
            InputError: tokens of another width, or for more blocks than there are.
        """
        if len(tokens) > self.depth or any(prompt.ndim != 2 or prompt.shape[1] != self.width for prompt in tokens):
            raise InputError(
                f"`tokens` must be tensors of shape (n, {self.width}), one for each of at most {self.depth} blocks, "
                f"got {[tuple(prompt.shape) for prompt in tokens]}"
            )
        with self._inserted(tokens), self._layers.used() if tokens else nullcontext():
            return self.encoder.image_features(pixels, kind)

    @contextmanager
    def _inserted(self, tokens: Sequence[Tensor]) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        present = 0  # prompts that are in the sequence already
        try:
            for number, (block, prompt) in enumerate(zip(self.blocks, tokens, strict=False)):
                norm = nn.Identity() if number else self._norm
                handles.append(block.register_forward_pre_hook(partial(_insert, prompt, present, norm)))
                present = len(prompt)
            if tokens:
                handles.append(self.blocks[-1].register_forward_hook(partial(_remove, present)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> VisionTokens:
        return self


def _insert(tokens: Tensor, present: int, norm: nn.Module, block: nn.Module, args: Any) -> Any:
    """The inputs of a block with `tokens` (n, w) after the image's own, instead of the last `present` ones."""
    x, *more = args  # (B, T, w)
    prompts = norm(tokens.to(x.dtype)).expand(len(x), -1, -1)  # (B, n, w)
    return torch.cat([x[:, : x.shape[1] - present], prompts], dim=1), *more


def _remove(present: int, block: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The output of the last block without the prompts; it may be that of the class token alone."""
    return output[:, : args[0].shape[1] - present]


class TwoTowerHead(PromptHead):
    """A prompt head that reads images: deep prompts in the text tower, and tokens in the image tower.

    A subclass implements `vision`.

    Args:
        prompted: the text features as a function of the context.
        images: the image features as a function of their tokens.
        context: (n, w), start of the learned tokens.
        rest: (m, w) frozen tokens after them; m may be 0.
        depth: number of blocks of the text tower that receive learned tokens, starting with the first.
        logit_scale: the model's exp(logit_scale).
    """

    rest: Tensor

    def __init__(
        self, prompted: SharedText, images: VisionTokens, context: Tensor, rest: Tensor, depth: int, logit_scale: float
    ) -> None:
        super().__init__(prompted, context, logit_scale)
        prompted.check(len(context) + len(rest))
        self.images = images
        self.register_buffer("rest", rest.detach().clone(), persistent=False)  # follows from words, not from training
        self.deep = nn.Parameter(normal(depth - 1, *context.shape, like=context))  # (D - 1, n, w)

    def vision(self) -> list[Tensor]:
        """Tokens (n', w') for the first blocks of the image tower, one tensor per block."""
        raise NotImplementedError

    def prompt(self) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        return torch.cat([self.context, self.rest]), self.deep

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(self.images(features, self.vision()), dim=-1)


def normal(*shape: int, like: Tensor) -> Tensor:
    """N(0, .02) from torch's global generator on the CPU, so that it is the same on every device."""
    return (STD * torch.randn(*shape)).to(like)


class TwoTowerTuning(PromptTuning):
    """Base class of methods that learn prompts in both towers, which are frozen otherwise.

    A subclass implements `two_tower_head` and sets `name`.

    Args:
        prompt: the prompts and their start.
        crops: views of the training images.
        memory: limits on the memory of the text tower.
    """

    name: str
    reads_pixels = True

    def __init__(
        self,
        *,
        prompt: DeepPrompt = DeepPrompt(),
        crops: PixelCrops = PixelCrops(),
        memory: TextMemory = TextMemory(),
    ) -> None:
        super().__init__()
        self.prompt = prompt
        self.crops = crops
        self.memory = memory

    def transforms(self, context: TuningContext) -> list[View]:
        return self.crops.transforms(context)

    def prompt_head(self, context: TuningContext) -> TwoTowerHead:
        prompted = SharedText(context.encoder, context.class_names, suffix=self.prompt.suffix, memory=self.memory)
        images = VisionTokens(context.encoder, self.name)
        no_words = prompted.tower.home.token_embedding.weight.detach()[:0]
        words = no_words if self.prompt.words is None else prompted.words_to_context(self.prompt.words)
        n_ctx = self.prompt.n_ctx
        missing = max(n_ctx - len(words), 0)
        start = torch.cat([words[:n_ctx], normal(missing, prompted.width, like=words)])
        return self.two_tower_head(context, prompted, images, start, words[n_ctx:])

    def two_tower_head(
        self, context: TuningContext, prompted: SharedText, images: VisionTokens, start: Tensor, rest: Tensor
    ) -> TwoTowerHead:
        """The method's head, whose context begins at `start`; see `TwoTowerHead` for its arguments."""
        raise NotImplementedError
