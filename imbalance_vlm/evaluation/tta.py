"""Test-time ensembling: the mean logits of several crops of an image.

[0] Shi, Wei, Zhou, Shao, Han, Li. Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts. ICML 2024.
[1] github.com/shijxcs/LIFT-plus, trainer.py

    The shorter side is scaled to s + 24 for a model of size s = 224 (in proportion for others); the four corners and
    the centre are cut out at size s; the logits are averaged before the softmax.

Differs from [1] in: the margin follows the model's size; mirror images are an option that the dataset has to allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_vlm.data.dataset import rgb
from imbalance_vlm.data.loading import Transform
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.sources import ImageSource, PixelSource, Source
from imbalance_vlm.errors import InputError

Tta = Literal["none", "five_crops", "five_crops_flips"]

PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
"""Where a crop lies between the top and the bottom, the left and the right; the centre first."""


@dataclass(frozen=True)
class CropView:
    """One crop of an image, as a normalised (3, s, s) tensor. Printing it says all that it does.

    Args:
        size: s.
        scaled: the shorter side before the crop.
        place: (down, right) of the crop, each from 0 to 1.
        mirrored: left and right exchanged, before the crop.
        interpolation: Pillow's number of the filter.
        mean, std: of the model.
    """

    size: int
    scaled: int
    place: tuple[float, float]
    mirrored: bool
    interpolation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.cut(self.resized(image))

    def resized(self, image: Image.Image) -> Image.Image:
        """The whole image at the size that all crops of it are cut from."""
        image = rgb(image)
        short = min(image.size)
        width, height = (self.scaled * side // short for side in image.size)
        return image.resize((width, height), Image.Resampling(self.interpolation))

    def cut(self, image: Image.Image) -> Tensor:
        """The crop of an image that has its size."""
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width, height = image.size
        top, left = (round(share * (side - self.size)) for share, side in zip(self.place, (height, width), strict=True))
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # (3, s, s)
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


@dataclass(frozen=True)
class AllViews:
    """Every view of an image at once, (V, 3, s, s): it is read once, and crops of one size are cut from one resize."""

    views: tuple[Transform, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        known: dict[tuple[int, int], Image.Image] = {}
        parts = []
        for view in self.views:
            if isinstance(view, CropView):
                key = view.scaled, view.interpolation
                known[key] = known.get(key) or view.resized(image)
                parts.append(view.cut(known[key]))
            else:
                parts.append(view(image))
        return torch.stack(parts)


def views_of(encoder: Encoder, tta: Tta, flips: bool) -> list[Transform]:
    """The views of a test image whose logits are averaged.

    Args:
        encoder: gives the model's own view, and the crops their size.
        tta: "none" for the model's own view alone, "five_crops", or "five_crops_flips".
        flips: whether the dataset's classes survive mirroring.

    Raises:
        InputError: mirror images of classes that do not survive them, or a transform that says too little for crops.
    """
    if tta == "five_crops_flips" and not flips:
        raise InputError(
            "`evaluation.tta` must be 'none' or 'five_crops' for a dataset whose classes do not survive mirroring "
            "(data.flips), got 'five_crops_flips'"
        )
    return [encoder.transform] if tta == "none" else five_crops(encoder, tta == "five_crops_flips")


def five_crops(encoder: Encoder, flips: bool = False) -> list[Transform]:
    """The views of an image whose logits are averaged: centre and corners, with their mirror images if asked for.

    Args:
        encoder: its transform gives size, interpolation, mean and std.
        flips: whether the dataset's classes survive mirroring.

    Raises:
        InputError: a transform that does not say its size or its normalisation.
    """
    centre = _centre_view(encoder)
    crops = [replace(centre, place=place) for place in PLACES]
    return [*crops, *(replace(crop, mirrored=True) for crop in crops if flips)]


def mean_logits(head: nn.Module, source: Source, rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits averaged over all views of a source, (B, C), and labels (B,), row by row in the order of `rows`.

    A batch of images holds as many images fewer as there are more views: neither memory nor the number of workers
    grows with them.

    Args:
        head: gives logits.
        source: holds the views; its epoch e reads view e.
        rows: indices, batch by batch.
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
    elif isinstance(source, (PixelSource, ImageSource)):
        every = PixelSource(source.split, [AllViews(tuple(source.transforms))], source.device)
        smaller = [part for chosen in rows for part in chosen.split(max(1, len(chosen) // source.num_views))]
        for pixels, labels in every.batches(smaller):  # (B, V, 3, s, s)
            yield _features(source, pixels.unbind(1)), labels
    else:
        for batches in zip(*(source.batches(rows, epoch=view) for view in range(source.num_views)), strict=True):
            yield (features for features, _ in batches), batches[0][1]


def _features(source: PixelSource | ImageSource, views: Sequence[Tensor]) -> Iterator[Tensor]:
    """The views as the head reads them: as pixels, or through the frozen tower."""
    for pixels in views:
        if isinstance(source, ImageSource):
            with torch.no_grad():
                yield source.encoder.image_features(pixels, source.kind)
        else:
            yield pixels


def _centre_view(encoder: Encoder) -> CropView:
    steps: Sequence[object] = getattr(encoder.transform, "transforms", [encoder.transform])
    by_name = {type(step).__name__: step for step in steps}
    normalise, crop = by_name.get("Normalize"), by_name.get("CenterCrop") or by_name.get("Resize")
    if normalise is None or crop is None:
        raise InputError(
            f"test-time ensembling needs a transform that crops or resizes and normalises, '{encoder.name}' has "
            f"{', '.join(by_name)}; set tta to none"
        )
    sides = getattr(crop, "size", 0)
    height, width = (sides, sides) if isinstance(sides, int) else (sides[0], sides[-1])
    if height != width:
        raise InputError(f"test-time ensembling needs square inputs, encoder '{encoder.name}' takes {height} x {width}")
    mean, std = (tuple(round(float(number), 8) for number in getattr(normalise, name)) for name in ("mean", "std"))
    return CropView(height, round(height * 248 / 224), PLACES[0], False, _filter(by_name.get("Resize")), mean, std)


def _filter(resize: object) -> int:
    """Pillow's number of the filter that a torchvision Resize uses; bicubic when nothing says."""
    name = getattr(getattr(resize, "interpolation", None), "name", "BICUBIC")
    return int(Image.Resampling[name] if name in Image.Resampling.__members__ else Image.Resampling.BICUBIC)
