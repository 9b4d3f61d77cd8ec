"""From an image to the tensor that a model reads: `Preprocessing`, and views that show a part of the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from PIL import Image
from torch import Tensor

from imbalance_vlm.data.decoders import to_tensor
from imbalance_vlm.errors import InputError, one_of

Resize = Literal["shortest", "longest", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

ON_TENSORS = ("bilinear", "bicubic")
"""Interpolations that torchvision computes on tensors as PIL does on images; its "nearest" takes other pixels."""

_AnyImage = TypeVar("_AnyImage", Image.Image, Tensor)


class View(Protocol):
    """A function from an RGB image to what a model reads, (3, H, W) float32.

    `size` is (H, W). `key()` identifies the view in the feature cache: two views that differ in any number have
    different keys, in every process.
    """

    @property
    def size(self) -> tuple[int, int]: ...
    def __call__(self, image: Image.Image, /) -> Tensor: ...
    def key(self) -> str: ...


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation preprocessing of a model: resize, centre crop (padded where needed), then normalise. A `View`.

    Args:
        size: (H, W) that the model reads.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel.
        resize: what is scaled to `resized`: the "shortest" side or the "longest" one, in proportion, or, by "squash",
            both sides.
        interpolation: name of PIL's filter.
        resized: (H, W) before the crop; `size` if None.
        fill: colour of the padding, 0 to 255 per channel.

    Raises:
        InputError: a value that no image can be prepared with.

    >>> half = Preprocessing((2, 2), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> half(Image.new("RGB", (6, 4), "white")).unique(), half.resized_to(4, 6)
    (tensor([1.]), (2, 3))
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    resized: tuple[int, int] | None = None
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        # Equal preprocessings have equal fields, and so equal keys.
        self._set("size", int, 2)
        self._set("mean", float, 3)
        self._set("std", float, 3)
        self._set("fill", int, 3)
        if self.resized is not None:
            self._set("resized", int, 2)
        if self.resized == self.size:
            object.__setattr__(self, "resized", None)
        if min(*self.size, *(self.resized or ())) < 1 or min(self.std) <= 0:
            raise InputError(f"preprocessing: sides must be at least 1 and `std` positive, got {self}")
        for name, allowed in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in allowed:
                raise InputError(f"preprocessing: `{name}` must be {one_of(allowed)}, got {getattr(self, name)!r}")

    def _set(self, name: str, kind: type[int] | type[float], length: int) -> None:
        values = tuple(kind(value) for value in getattr(self, name))
        if len(values) != length:
            raise InputError(f"preprocessing: `{name}` must have {length} entries, got {values}")
        object.__setattr__(self, name, values)

    def with_filter(self, interpolation: Interpolation | None) -> Preprocessing:
        """The same with another interpolation; None keeps it."""
        return replace(self, interpolation=interpolation) if interpolation else self

    def key(self) -> str:
        """Every field, in full precision."""
        return repr(self)

    def __call__(self, image: Image.Image, /) -> Tensor:
        """(3, H, W) float32 of a PIL image, equal to what the model's own library computes."""
        image = self._scaled(image)
        return self.normalise(to_tensor(self._cut(image if image.mode == "RGB" else image.convert("RGB"))))

    @property
    def has_tensor_form(self) -> bool:
        """Whether `on_tensors` can be used."""
        return self.interpolation in ON_TENSORS

    def on_tensors(self, pixels: Tensor) -> Tensor:
        """The same for uint8 tensors, (3, h, w) or a batch of one size (B, 3, h, w), on any device.

        Faster than PIL, and different from it by at most one step of 255 before normalisation.
        """
        from torchvision.transforms.v2 import functional as TF

        scaled = TF.to_dtype(self._cut(self._scaled(pixels)), torch.float32, scale=True)
        return TF.normalize(scaled, list(self.mean), list(self.std))

    def only_normalises(self, height: int, width: int) -> bool:
        """Whether images of this size are neither scaled nor cropped, so that `normalise` is all that is left to do."""
        return self.resized_to(height, width) == (height, width) == self.size

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (..., 3, H, W) of the model's size as float32, to the last bit as for a single PIL image."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return pixels.contiguous().float().div(255).sub_(mean).div_(std)

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of an image of this size before the crop, rounded as torchvision, open_clip and timm round."""
        target_height, target_width = target = self.resized or self.size
        if self.resize == "squash":
            return target
        if self.resize == "shortest" and target_height == target_width:  # torchvision's Resize
            short, long = sorted((height, width))
            other = int(target_height * long / short)
            return (target_height, other) if height <= width else (other, target_height)
        ratios = height / target_height, width / target_width  # ResizeKeepRatio of open_clip and timm
        ratio = max(ratios) if self.resize == "longest" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _scaled(self, image: _AnyImage) -> _AnyImage:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as TF

        size = list(self.resized_to(*TF.get_size(image)))
        return TF.resize(image, size, InterpolationMode(self.interpolation), antialias=True)

    def _cut(self, image: _AnyImage) -> _AnyImage:
        from torchvision.transforms.v2 import functional as TF

        height, width = TF.get_size(image)
        down, right = max(0, self.size[0] - height), max(0, self.size[1] - width)
        if down or right:
            image = TF.pad(image, [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2], fill=list(self.fill))
        return TF.center_crop(image, list(self.size))


@dataclass(frozen=True)
class OnTensors:
    """A view that converts a PIL image to a tensor first, and then applies `Preprocessing.on_tensors`."""

    base: Preprocessing

    @property
    def size(self) -> tuple[int, int]:
        return self.base.size

    def key(self) -> str:
        return repr(self)

    def __call__(self, image: Image.Image, /) -> Tensor:
        return self.base.on_tensors(to_tensor(image))


@dataclass(frozen=True)
class PartialView(ABC):
    """A view that crops the image and applies `base`. Subclasses are frozen dataclasses, whose fields are the key.

    Args:
        base: usually the model's `Preprocessing`.
    """

    base: View

    @abstractmethod
    def crop(self, image: Image.Image) -> Image.Image:
        """The part that is shown; a function of the image and the fields alone."""

    @property
    def size(self) -> tuple[int, int]:
        return self.base.size

    def key(self) -> str:
        return repr(self)

    def __call__(self, image: Image.Image, /) -> Tensor:
        return self.base(self.crop(image))


def with_tensors(view: View) -> View:
    """The view with its preprocessing on tensors instead of PIL images; unchanged where it has no tensor form."""
    if isinstance(view, Preprocessing) and view.has_tensor_form:
        return OnTensors(view)
    if isinstance(view, PartialView):
        changed: Any = replace(view, base=with_tensors(view.base))
        return changed
    return view
