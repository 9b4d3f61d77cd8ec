"""Sources of batches, with one interface: cached features, images, or images through the frozen tower."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imbalance_vlm.data.dataset import Split
from imbalance_vlm.data.loader import Decoder, PixelLoader
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.errors import InputError

EVALUATION_NUMBERS = {"cpu": 2**22, "cuda": 2**24}
"""Most numbers in a batch of images or tokens in an evaluation: 27 images of 224 pixels on the CPU, 111 on a GPU."""


ROWS_CHECKED = 4096
"""Rows of an array that are checked at once."""
NAMED_IMAGES = 5
"""Images that an error names."""


def check_finite(features: Tensor | NDArray[np.floating], name: Callable[[int], str]) -> None:
    """Refuse features that are nan or infinite: they would become an ordinary result, or stop the training later.

    Args:
        features: (N, ...).
        name: from a row to the name of its image.

    Raises:
        InputError: with the names of the images.
    """
    bad: list[int] = []
    for start in range(0, len(features), ROWS_CHECKED):
        block = features[start : start + ROWS_CHECKED]
        finite = block.isfinite() if isinstance(block, Tensor) else np.isfinite(block)
        if not bool(finite.all()):
            broken = ~finite.reshape(len(block), -1).all(1)
            bad += [start + row for row, is_broken in enumerate(broken.tolist()) if is_broken]
    if bad:
        names = ", ".join(repr(name(row)) for row in bad[:NAMED_IMAGES]) + ", ..." * (len(bad) > NAMED_IMAGES)
        raise InputError(
            f"the features of an image must be finite, got nan or inf for {len(bad)} of {len(features)} images: "
            f"{names}; the features or the weights that they come from are damaged: remove the feature cache "
            "(`imbalance-vlm cache prune`), set encoder.precision to fp32, and train again (--force)"
        )


class Source(Protocol):
    """Features and labels of one split, by row."""

    labels: Tensor

    @property
    def num_views(self) -> int: ...

    def __len__(self) -> int: ...
    def name(self, row: int) -> str:
        """The name of a row's image, for errors."""

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (B, ...) float32, labels (B,)) on the device, for each tensor of rows."""


class FeatureSource:
    """Cached features: the whole set is kept on the device if it fits, and a batch is an index select.

    Args:
        views: one array (N, ...) per view; epoch e reads view e mod k.
        labels: (N,) int64.
        device: where batches are used.
        names: from a row to the name of its image, for errors.

    Raises:
        InputError: features that are nan or infinite.
    """

    def __init__(
        self,
        views: Sequence[NDArray[np.floating]],
        labels: NDArray[np.int64],
        device: torch.device,
        names: Callable[[int], str] | None = None,
    ) -> None:
        self.names = names
        self.labels = torch.from_numpy(labels).to(device)
        self.device = device
        for view in views:
            check_finite(view, self.name)
        fits = sum(view.nbytes for view in views) <= free_memory(device) // 2
        self.views = [torch.from_numpy(np.array(view)).to(device) if fits else view for view in views]

    @property
    def num_views(self) -> int:
        return len(self.views)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return self.names(row) if self.names is not None else f"row {row}"

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        view = self.views[epoch % len(self.views)]
        for chosen in rows:
            on_device = chosen.to(self.device)
            if isinstance(view, Tensor):
                features = view.index_select(0, on_device)
            else:
                features = torch.from_numpy(view[chosen.numpy()]).to(self.device)
            yield features.float(), self.labels.index_select(0, on_device)


class PixelSource:
    """Preprocessed images, for a head that runs the image tower itself.

    Args:
        split: images and labels.
        views: transforms from images to tensors; epoch e uses view e mod k.
        device: where batches are used.
        decoder: see `PixelLoader`.
    """

    def __init__(self, split: Split, views: Sequence[View], device: torch.device, decoder: Decoder = "pil") -> None:
        self.split = split
        self.views = views
        self.device = device
        self.labels = torch.from_numpy(split.labels).to(device)
        self.loader = PixelLoader(split.images, views, decoder, device=device)

    @property
    def num_views(self) -> int:
        return len(self.views)

    def __len__(self) -> int:
        return len(self.split)

    def name(self, row: int) -> str:
        return self.split.images.name(row)

    def features(self, pixels: Tensor) -> Tensor:
        """What a head reads of pixels (B, 3, H, W) on the device."""
        return pixels

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        loaded = self.loader.batches([chosen.tolist() for chosen in rows], epoch % len(self.views))
        for chosen, pixels in zip(rows, loaded, strict=True):
            features = self.features(pixels.to(self.device, non_blocking=True))
            yield features, self.labels.index_select(0, chosen.to(self.device))


class ImageSource(PixelSource):
    """Features of images that go through the frozen tower in every pass: for tokens too large to keep, for example.

    Args:
        split: images and labels.
        encoder: computes the features.
        kind: which features; see `imbalance_vlm.encoders.base.KINDS`.
        views: transforms from images to tensors; epoch e uses view e mod k.
        device: where the encoder is.
        decoder: see `PixelLoader`.
    """

    def __init__(
        self,
        split: Split,
        encoder: Encoder,
        kind: str,
        views: Sequence[View],
        device: torch.device,
        decoder: Decoder = "pil",
    ) -> None:
        super().__init__(split, views, device, decoder)
        self.encoder = encoder
        self.kind = kind

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        return self.encoder.image_features(pixels, self.kind)

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source.batches`.

        Raises:
            InputError: features that are nan or infinite.
        """
        for chosen, (features, labels) in zip(rows, super().batches(rows, epoch), strict=True):
            check_finite(features, lambda row, chosen=chosen: self.name(int(chosen[row])))  # type: ignore[misc]
            yield features, labels


def evaluation_rows(source: Source, batch_size: int) -> tuple[Tensor, ...]:
    """All rows of a source in order, in batches for a pass without gradients; the batch size changes no result.

    A batch of images or tokens has at most `EVALUATION_NUMBERS` numbers: 1024 images of 224 pixels, read ahead by
    several workers, would take gigabytes, and the tower's activations many more.

    Args:
        source: features or images.
        batch_size: most rows in a batch.
    """
    shape: Sequence[int] = ()
    if isinstance(source, PixelSource):
        shape = (3, *source.views[0].size)
    elif isinstance(source, FeatureSource) and source.views[0].ndim > 2:
        shape = source.views[0].shape[1:]  # (T, w)
    if shape:
        limit = EVALUATION_NUMBERS["cuda" if source.labels.is_cuda else "cpu"]
        batch_size = max(1, min(batch_size, limit // math.prod(shape)))
    return torch.arange(len(source)).split(batch_size)


def free_memory(device: torch.device) -> int:
    """Free bytes on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system reports it
        return 4 << 30
