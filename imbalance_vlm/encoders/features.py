"""From a split to a source of features: through the cache, or through the tower in every pass."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.components.ranges import Natural, NonNegative
from imbalance_vlm.data.dataset import Split
from imbalance_vlm.data.loader import Decoder, pixel_batches
from imbalance_vlm.data.pixels import PIXELS_VERSION
from imbalance_vlm.data.preprocessing import PartialView, View
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.cache import CHUNK, FeatureCache
from imbalance_vlm.encoders.sources import FeatureSource, ImageSource, Source, check_finite
from imbalance_vlm.progress import note

ENCODE_BATCH = CHUNK // 4  # a divisor: a resumed entry starts at a whole chunk, with the same batches as before
CPU_NUMBERS = 2**21
"""Pixel values that go through a tower on the CPU at once. The activations of more are allocated and freed again for
every layer, which at 224 x 224 took three quarters of the time."""
FEATURES_VERSION = "1"
"""Raised whenever the computation of features changes, so that the cache does not return those of an older version."""


@dataclass(frozen=True)
class CroppedView(PartialView):
    """A random crop of varying aspect, stretched to a square, then the model's own preprocessing.

    The crop is drawn from the image itself and the view's number: the same image gives the same crop in every run and
    on every worker, so a view can be cached.

    Args:
        base: the model's preprocessing.
        view: number of the view.
        min_scale: smallest share of the image that is shown.
        flips: whether half of the crops are mirrored.
    """

    view: int
    min_scale: float
    flips: bool

    def crop(self, image: Image.Image) -> Image.Image:
        from torchvision.transforms import RandomResizedCrop

        seed = zlib.crc32(image.tobytes(), self.view)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which moves the GPUs' generators too
            top, left, height, width = RandomResizedCrop.get_params(
                image,
                [self.min_scale, 1.0],
                [3 / 4, 4 / 3],
            )
            mirrored = self.flips and bool(torch.rand(()) < 0.5)
        side = min(image.size)
        image = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BICUBIC)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def view_transforms(encoder: Encoder, views: int, min_scale: float, flips: bool) -> list[View]:
    """`views` random crops, or the model's own preprocessing alone if `views` is 0; see `CroppedView`."""
    if not views:
        return [encoder.preprocessing]
    return [CroppedView(encoder.preprocessing, view, min_scale, flips) for view in range(views)]


def feature_source(
    encoder: Encoder,
    split: Split,
    kind: str,
    views: Sequence[View],
    device: torch.device,
    description: str,
    *,
    cache: bool = True,
    token_limit_gb: NonNegative = 4.0,
    decoder: Decoder = "pil",
    resized: Natural = 0,
) -> Source:
    """The features of a split. Pooled features are kept in float32, tokens in float16.

    Args:
        encoder: the frozen tower.
        split: images and labels.
        kind: which features; see `imbalance_vlm.encoders.base.KINDS`.
        views: transforms from images to tensors.
        device: where batches are used.
        description: names the split in the progress bar and in listings of the cache.
        cache: false sends the images through the tower in every pass, and leaves tokens in float32.
        token_limit_gb: tokens of a split that would take more than this many GB (10^9 bytes) are computed in every
            pass instead of kept; all tokens of an image take T times the space of a pooled feature.
        decoder: how images are read that go through the tower in every pass: by "pil"; by "torchvision", which is
            faster and differs by at most one step of 255; or by "gpu", torchvision on the GPU if there is one. Features
            that are kept are always computed with "pil".
        resized: keeps a copy of each larger image in the cache, with this many pixels on its shorter side (3 bytes per
            pixel), and reads the copy instead; 0 for none. At the model's own size, only the numbers of crops change.
    """
    split = resized_split(split, resized)
    shape = _shape(encoder, split, kind, views[0], device)
    dtype = "float16" if kind == "tokens" else "float32"
    size = len(views) * int(np.prod(shape)) * np.dtype(dtype).itemsize
    if cache and kind == "tokens" and size > token_limit_gb * 1e9:
        note(
            f"{description}: {size / 1e9:.1f} GB of tokens exceed encoder.token_limit_gb {token_limit_gb:g}: "
            "they are computed in every pass"
        )
        cache = False
    if not cache:
        return ImageSource(split, encoder, kind, views, device, decoder)
    store = FeatureCache()
    arrays = [
        store.get(
            _made_from(encoder, split, kind, view, description),
            shape,
            dtype,
            partial(_encode, encoder, split, kind, view, device),
        )
        for view in views
    ]
    return FeatureSource(arrays, split.labels, device, split.images.name)


def _shape(encoder: Encoder, split: Split, kind: str, view: View, device: torch.device) -> tuple[int, ...]:
    if kind != "tokens":
        return len(split), encoder.width(kind)
    with torch.no_grad():
        tokens = encoder.image_features(torch.zeros(1, 3, *view.size, device=device), kind)  # (1, T, w)
    return len(split), tokens.shape[1], tokens.shape[2]


def _made_from(encoder: Encoder, split: Split, kind: str, view: View, description: str) -> dict[str, str]:
    """Everything that the numbers depend on."""
    return {
        "encoder": f"{encoder.name} {encoder.pretrained}",
        "weights": encoder.fingerprint,
        "precision": encoder.precision,
        "final_norm": str(encoder.final_norm),
        "version": f"{FEATURES_VERSION}.{PIXELS_VERSION}",
        "view": view.key(),
        "images": split.images.fingerprint,
        "split": description,
        "kind": kind,
    }


def _encode(
    encoder: Encoder, split: Split, kind: str, view: View, device: torch.device, start: int
) -> Iterator[NDArray[np.floating]]:
    """The features of the rows from `start` to the last, batch by batch.

    Raises:
        InputError: features that are nan or infinite, before they are kept.
    """
    batches = [rows.tolist() for rows in torch.arange(start, len(split)).split(ENCODE_BATCH)]
    for rows, pixels in zip(batches, pixel_batches(split.images, view, batches), strict=True):
        few = max(1, CPU_NUMBERS // pixels[0].numel()) if device.type == "cpu" else len(pixels)
        with torch.inference_mode():  # inside the loop: around a `yield` it would apply to the caller too
            parts = [encoder.image_features(part.to(device, non_blocking=True), kind) for part in pixels.split(few)]
        features = torch.cat(parts).cpu().numpy()
        check_finite(features, lambda row, rows=rows: split.images.name(rows[row]))  # type: ignore[misc]
        yield features
