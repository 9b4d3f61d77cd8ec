"""From a split to a source of features: through the cache where it pays, through the tower where it does not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imbalance_vlm.components.ranges import Natural, NonNegative
from imbalance_vlm.data.dataset import Split
from imbalance_vlm.data.loading import Decoder, Transform, pixel_batches
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.cache import CHUNK, FeatureCache
from imbalance_vlm.encoders.sources import FeatureSource, ImageSource, Source
from imbalance_vlm.progress import note

ENCODE_BATCH = CHUNK // 4  # a divisor: a resumed entry goes on at a whole chunk, with the same batches as before
CPU_NUMBERS = 2**21
"""Pixel values that go through a tower on the CPU at once: the activations of more are mapped in and out of memory for
every layer, which at 224 x 224 took three quarters of the time."""
FEATURES_VERSION = "1"
"""Raised whenever the way features are computed changes, so that no cache serves what an older version made."""


@dataclass(frozen=True)
class CroppedView:
    """A random square-ish crop (and mirror image, where classes survive it) before the model's own transform.

    The crop is drawn from the image itself and the view's number: the same image gives the same crop in every run,
    on every worker, so a cached view means something.
    """

    base: Transform
    view: int
    min_scale: float
    flips: bool

    def __call__(self, image: Image.Image) -> Tensor:
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
        return self.base(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image)


def view_transforms(encoder: Encoder, views: int, min_scale: float, flips: bool) -> list[Transform]:
    """The model's own transform alone, or `views` random crops in its place."""
    crops: list[Transform] = [CroppedView(encoder.transform, view, min_scale, flips) for view in range(views)]
    return crops or [encoder.transform]


def feature_source(
    encoder: Encoder,
    split: Split,
    kind: str,
    transforms: Sequence[Transform],
    device: torch.device,
    description: str,
    *,
    cache: bool = True,
    token_limit_gb: NonNegative = 4.0,
    decoder: Decoder = "pil",
    resized: Natural = 0,
) -> Source:
    """The features of a split.

    Args:
        encoder: the frozen tower.
        split: images and labels.
        kind: which features; see `imbalance_vlm.encoders.base.KINDS`.
        transforms: one for each view.
        device: where batches are wanted.
        description: names the split in the progress bar and the cache's listing.
        cache: false sends the images through the tower at every pass.
        token_limit_gb: all image tokens take T times the room of a pooled feature; above this many GB (10^9 bytes) a
            split's tokens are computed at every pass instead of kept.
        decoder: what reads images that go through the tower at every pass: "pil"; "torchvision", which is faster and
            differs by a step of 255 at most; "gpu", torchvision on the GPU where there is one. Kept features are always
            made with "pil".
        resized: keeps a copy of each larger image, with its shorter side at this many pixels, in the cache, and reads
            that (3 bytes a pixel); 0 for none. At the model's own size the numbers stay as they are, but for crops.

    Pooled features are kept in float32, tokens in float16.
    """
    split = resized_split(split, resized)
    shape = _shape(encoder, split, kind, transforms[0], device)
    dtype = "float16" if kind == "tokens" else "float32"
    size = len(transforms) * int(np.prod(shape)) * np.dtype(dtype).itemsize
    if cache and kind == "tokens" and size > token_limit_gb * 1e9:
        note(
            f"{description}: {size / 1e9:.1f} GB of tokens exceed encoder.token_limit_gb {token_limit_gb:g}: "
            "computed at every pass"
        )
        cache = False
    if not cache:
        return ImageSource(split, encoder, kind, transforms, device, decoder)
    store = FeatureCache()
    arrays = [
        store.get(
            _made_from(encoder, split, kind, transform, description),
            shape,
            dtype,
            partial(_encode, encoder, split, kind, transform, device),
        )
        for transform in transforms
    ]
    return FeatureSource(arrays, split.labels, device, split.images.name)


def _shape(encoder: Encoder, split: Split, kind: str, transform: Transform, device: torch.device) -> tuple[int, ...]:
    if kind != "tokens":
        return len(split), encoder.width(kind)
    with torch.no_grad():
        probe = encoder.image_features(transform(split.images[0])[None].to(device), kind)  # (1, T, w)
    return len(split), probe.shape[1], probe.shape[2]


def _made_from(encoder: Encoder, split: Split, kind: str, transform: Transform, description: str) -> dict[str, str]:
    return {
        "encoder": f"{encoder.name} {encoder.pretrained}",
        "weights": encoder.fingerprint,
        "precision": encoder.precision,
        "final_norm": str(encoder.final_norm),
        "version": FEATURES_VERSION,
        "transform": _describe(transform),
        "images": split.images.fingerprint,
        "split": description,
        "kind": kind,
    }


def _describe(transform: Transform) -> str:
    """A transform in words, without the memory addresses that the functions among its steps print."""
    if isinstance(transform, CroppedView):
        return (
            f"view {transform.view}, scale {transform.min_scale}, flips {transform.flips}, {_describe(transform.base)}"
        )
    steps = getattr(transform, "transforms", [transform])
    return "; ".join(getattr(step, "__name__", None) or repr(step) for step in steps)


def _encode(
    encoder: Encoder, split: Split, kind: str, transform: Transform, device: torch.device, start: int
) -> Iterator[NDArray[np.floating]]:
    """The features of the rows from `start` to the last, batch by batch."""
    rows = [rows.tolist() for rows in torch.arange(start, len(split)).split(ENCODE_BATCH)]
    for pixels in pixel_batches(split.images, transform, rows):
        few = max(1, CPU_NUMBERS // pixels[0].numel()) if device.type == "cpu" else len(pixels)
        with torch.inference_mode():  # inside the loop: around a `yield` it would hold in the caller too
            parts = [encoder.image_features(part.to(device, non_blocking=True), kind) for part in pixels.split(few)]
        yield torch.cat(parts).cpu().numpy()
