"""An encoder with weights in a file, and one around open_clip's models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.base import Encoder, file_fingerprint
from imbalance_vlm.encoders.open_clip import OpenClipEncoder, OpenClipSpec
from imbalance_vlm.errors import InputError

PREFIX = "grey:"
PATCH = 4


class PatchTower(nn.Module):
    """The mean over the patches of an image of relu(norm(A x)), (B, 3, H, W) -> (B, w).

    Args:
        width: w.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(3 * PATCH**2, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)  # (B, T, 3 * PATCH^2)
        return F.relu(self.norm(self.map(patches))).mean(dim=1)


class PatchEncoder:
    """An image encoder without a text tower.

    Args:
        tower: its module.
        fingerprint: identifies the weights.
    """

    name = "patches"
    pretrained = ""
    pretrain_pairs: int | None = None
    samples_seen: int | None = None
    precision = "fp32"
    final_norm = False
    logit_scale = 1.0
    preprocessing = Preprocessing((16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    def __init__(self, tower: PatchTower, fingerprint: str) -> None:
        self.module: nn.Module = tower
        self.fingerprint = fingerprint
        self._width = tower.norm.normalized_shape[0]

    def width(self, kind: str) -> int:
        return self._width

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        features: Tensor = self.module(pixels)
        return features

    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        raise InputError(f"encoder '{self.name}' has no text tower")

    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        raise InputError(f"encoder '{self.name}' has no text tower")


@dataclass(frozen=True)
class PatchSpec:
    """A linear map of image patches.

    Args:
        name: "patches".
        weights: a safetensors file with the state of a `PatchTower`.
    """

    name: str
    _: KW_ONLY
    weights: Path

    def identity(self) -> str:
        return file_fingerprint(self._file())

    def build(self) -> Encoder:
        file = self._file()
        state = load_file(file)
        tower = PatchTower(len(state["norm.weight"]))
        tower.load_state_dict(state)
        return PatchEncoder(tower.eval(), file_fingerprint(file))

    def _file(self) -> Path:
        file = Path(self.weights).expanduser()
        if not file.is_file():
            raise InputError(f"`weights` of encoder '{self.name}' must be a safetensors file, got {str(file)!r}")
        return file


class GreyEncoder:
    """An open_clip model whose image tower sees no colours.

    Args:
        base: the model.
    """

    def __init__(self, base: OpenClipEncoder) -> None:
        self.base = base
        self.name = PREFIX + base.name
        self.pretrained = base.pretrained
        self.pretrain_pairs = base.pretrain_pairs
        self.samples_seen = base.samples_seen
        self.precision = base.precision
        self.fingerprint = f"grey:{base.fingerprint}"
        self.preprocessing = base.preprocessing
        self.final_norm = base.final_norm
        self.logit_scale = base.logit_scale
        self.module: nn.Module = base.module
        self.tokenizer = base.tokenizer  # with it, prompts can be learned

    def width(self, kind: str) -> int:
        return self.base.width(kind)

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        return self.base.image_features(pixels.mean(dim=1, keepdim=True).expand_as(pixels), kind)

    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        return self.base.text_features(class_names, templates)

    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        return self.base.text_in(kind, text_features)


@dataclass(frozen=True)
class GreySpec:
    """An open_clip model on grey images.

    Args:
        name: "grey:MODEL", MODEL as open_clip encoders are named.
        pretrained: as for open_clip encoders.
        features: which image features heads on pooled features read.
    """

    name: str
    _: KW_ONLY
    pretrained: str | None = None
    features: Literal["embedding", "class_token"] = "embedding"

    def identity(self) -> str:
        return f"grey:{self._base().identity()}"

    def build(self) -> Encoder:
        return GreyEncoder(self._base().build())

    def _base(self) -> OpenClipSpec:
        return OpenClipSpec(self.name.removeprefix(PREFIX), pretrained=self.pretrained, features=self.features)
