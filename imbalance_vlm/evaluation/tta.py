"""Test-time ensembling: the mean logits of several crops of an image.

[0] Shi, Wei, Zhou, Shao, Han, Li. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
[1] github.com/shijxcs/LIFT-plus, trainer.py

    The shorter side is scaled to s + 24 for a model of size s = 224 (in proportion for other sizes); the four corners
    and the centre are cropped at size s; the logits are averaged before the softmax.

Differs from [1] in: the margin follows the model's size unless it is set ([1] has 24 for patches of 16 pixels, 21 for
patches of 14); mirrored crops are an option, which the dataset has to allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_vlm.data.decoders import to_tensor
from imbalance_vlm.data.pixels import to_rgb
from imbalance_vlm.data.preprocessing import Preprocessing, View
from imbalance_vlm.encoders.sources import PixelSource, Source
from imbalance_vlm.errors import InputError

Tta = Literal["none", "five_crops", "five_crops_flips"]

PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
"""Where a crop lies between top and bottom, left and right; the centre first."""


@dataclass(frozen=True)
class PlacedCrop:
    """One crop of an image, normalised as the model reads it. A `View`.

    Args:
        base: the model's preprocessing; its inputs are square.
        place: (down, right) of the crop, each from 0 to 1.
        mirrored: left and right exchanged, before the crop.
        margin: by how many pixels the shorter side of the scaled image exceeds the crop.
    """

    base: Preprocessing
    place: tuple[float, float]
    mirrored: bool
    margin: int

    @property
    def size(self) -> tuple[int, int]:
        return self.base.size

    @property
    def shorter_side(self) -> int:
        """Of the scaled image, before the crop."""
        return self.size[0] + self.margin

    def key(self) -> str:
        return repr(self)

    def __call__(self, image: Image.Image, /) -> Tensor:
        return self.cut(self.scaled(image))

    def scaled(self, image: Image.Image) -> Image.Image:
        """The whole image at the size that all crops are taken from."""
        image = to_rgb(image)
        width, height = (self.shorter_side * side // min(image.size) for side in image.size)
        return image.resize((width, height), Image.Resampling[self.base.interpolation.upper()])

    def cut(self, image: Image.Image) -> Tensor:
        """The crop of a scaled image."""
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        size, (width, height) = self.size[0], image.size
        top, left = (round(share * (side - size)) for share, side in zip(self.place, (height, width), strict=True))
        return self.base.normalise(to_tensor(image.crop((left, top, left + size, top + size))))


@dataclass(frozen=True)
class AllViews:
    """Several views of an image at once, (V, 3, H, W): the image is read once, and scaled once for all its crops."""

    views: tuple[View, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.views[0].size

    def key(self) -> str:
        return repr(self)

    def __call__(self, image: Image.Image, /) -> Tensor:
        scaled: dict[Preprocessing, Image.Image] = {}
        tensors = []
        for view in self.views:
            if isinstance(view, PlacedCrop):
                scaled[view.base] = scaled.get(view.base) or view.scaled(image)
                tensors.append(view.cut(scaled[view.base]))
            else:
                tensors.append(view(image))
        return torch.stack(tensors)


def views_of(preprocessing: Preprocessing, tta: Tta, flips: bool, margin: int | None = None) -> list[View]:
    """The views of a test image whose logits are averaged.

    Args:
        preprocessing: the model's own.
        tta: "none" for the model's own view alone, "five_crops", or "five_crops_flips" for mirrored crops too.
        flips: whether the dataset's classes stay the same when mirrored.
        margin: by how many pixels the shorter side of a scaled image exceeds its crops; None for 24 at inputs of 224
            pixels, and in proportion for others.

    Raises:
        InputError: mirrored images of classes that do not stay the same, or a model whose inputs are not square.
    """
    if tta == "five_crops_flips" and not flips:
        raise InputError(
            "`evaluation.tta` must be 'none' or 'five_crops' for a dataset whose classes change when mirrored "
            "(data.flips), got 'five_crops_flips'"
        )
    return [preprocessing] if tta == "none" else five_crops(preprocessing, tta == "five_crops_flips", margin)


def five_crops(preprocessing: Preprocessing, flips: bool = False, margin: int | None = None) -> list[View]:
    """The centre and the four corners of an image, and with `flips` their mirror images; see `views_of`.

    Raises:
        InputError: a model whose inputs are not square.
    """
    height, width = preprocessing.size
    if height != width:
        raise InputError(
            f"`evaluation.tta` must be 'none' for an encoder whose inputs are not square, got {height} x {width}"
        )
    if margin is None:
        margin = round(height * 24 / 224)
    return [
        PlacedCrop(preprocessing, place, mirrored, margin)
        for mirrored in ((False, True) if flips else (False,))
        for place in PLACES
    ]


def mean_logits(head: nn.Module, source: Source, rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits averaged over all views of a source, row by row in the order of `rows`.

    A batch of images has fewer images by the number of views, so that more views need neither more memory nor more
    workers.

    Args:
        head: computes logits.
        source: holds the views; its epoch e reads view e.
        rows: indices, batch by batch.

    Yields:
        Logits (B, C) and labels (B,).
    """
    for views, labels in _all_views(source, rows):
        logits = head(next(views)).float()  # (B, C)
        for features in views:
            logits = logits + head(features).float()
        yield logits / source.num_views, labels


def _all_views(source: Source, rows: Sequence[Tensor]) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
    """What a head reads of each view of a batch, (B, ...) each, and the labels (B,)."""
    if source.num_views == 1:
        for features, labels in source.batches(rows):
            yield iter([features]), labels
    elif isinstance(source, PixelSource):
        together = PixelSource(source.split, [AllViews(tuple(source.views))], source.device)
        smaller = [part for chosen in rows for part in chosen.split(max(1, len(chosen) // source.num_views))]
        for pixels, labels in together.batches(smaller):  # (B, V, 3, H, W)
            yield map(source.features, pixels.unbind(1)), labels
    else:
        for batches in zip(*(source.batches(rows, epoch=view) for view in range(source.num_views)), strict=True):
            yield (features for features, _ in batches), batches[0][1]
