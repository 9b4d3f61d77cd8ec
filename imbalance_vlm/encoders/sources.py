"""Where batches come from: features in memory, or images through the frozen tower. One interface for both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imbalance_vlm.data.dataset import Split
from imbalance_vlm.data.loading import Decoder, PixelLoader, Transform, TransformedImages
from imbalance_vlm.encoders.base import Encoder

EVALUATION_NUMBERS = {"cpu": 2**22, "cuda": 2**24}
"""Numbers of images or tokens to a batch of an evaluation: 27 images of 224 pixels on the CPU, 111 on a GPU."""


class Source(Protocol):
    """Features and labels of one split, by row."""

    labels: Tensor

    @property
    def num_views(self) -> int: ...

    def __len__(self) -> int: ...
    def name(self, row: int) -> str:
        """What an error calls the image of a row."""

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (B, ...) float32, labels (B,)) on the device, for each tensor of rows."""


class FeatureSource:
    """Cached features: the whole set lives on the device where it fits, and a batch is an index select.

    Args:
        views: one array (N, ...) for each view; epoch e reads view e mod k.
        labels: (N,) int64.
        device: where batches are wanted.
        names: gives the name of the image of a row, for errors.
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
            there = chosen.to(self.device)
            if isinstance(view, Tensor):
                features = view.index_select(0, there)
            else:
                features = torch.from_numpy(view[chosen.numpy()]).to(self.device)
            yield features.float(), self.labels.index_select(0, there)


class ImageSource:
    """Images that go through the frozen tower at every pass: for tokens too large to keep, or to measure against.

    Args:
        split: images and labels.
        encoder: gives the features.
        kind: which features; see `imbalance_vlm.encoders.base.KINDS`.
        transforms: one for each view; epoch e uses transform e mod k.
        device: where the encoder is.
        decoder: see `PixelLoader`.
    """

    def __init__(
        self,
        split: Split,
        encoder: Encoder,
        kind: str,
        transforms: Sequence[Transform],
        device: torch.device,
        decoder: Decoder = "pil",
    ) -> None:
        self.split = split
        self.encoder = encoder
        self.kind = kind
        self.transforms = transforms
        self.device = device
        self.labels = torch.from_numpy(split.labels).to(device)
        self.loader = PixelLoader(split.images, transforms, decoder, device=device)

    @property
    def num_views(self) -> int:
        return len(self.transforms)

    def __len__(self) -> int:
        return len(self.split)

    def name(self, row: int) -> str:
        return self.split.images.name(row)

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        pixels = self.loader.batches([chosen.tolist() for chosen in rows], epoch % len(self.transforms))
        for chosen, batch in zip(rows, pixels, strict=True):
            with torch.no_grad():
                features = self.encoder.image_features(batch.to(self.device, non_blocking=True), self.kind)
            yield features, self.labels.index_select(0, chosen.to(self.device))


class PixelSource:
    """Preprocessed images, (B, 3, H, W), for a head that runs the image tower itself.

    Args:
        split: images and labels.
        transforms: one for each view; epoch e uses transform e mod k.
        device: where batches are wanted.
        decoder: see `PixelLoader`.
    """

    def __init__(
        self, split: Split, transforms: Sequence[Transform], device: torch.device, decoder: Decoder = "pil"
    ) -> None:
        self.split = split
        self.transforms = transforms
        self.device = device
        self.labels = torch.from_numpy(split.labels).to(device)
        self.loader = PixelLoader(split.images, transforms, decoder, device=device)

    @property
    def num_views(self) -> int:
        return len(self.transforms)

    def __len__(self) -> int:
        return len(self.split)

    def name(self, row: int) -> str:
        return self.split.images.name(row)

    def batches(self, rows: Sequence[Tensor], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        pixels = self.loader.batches([chosen.tolist() for chosen in rows], epoch % len(self.transforms))
        for chosen, batch in zip(rows, pixels, strict=True):
            labels = self.labels.index_select(0, chosen.to(self.device))
            yield batch.to(self.device, non_blocking=True), labels


def evaluation_rows(source: Source, batch_size: int) -> tuple[Tensor, ...]:
    """All rows of a source in order, in batches for a pass without gradients, whose size changes no number.

    A batch holds at most as many images (or tokens) as `EVALUATION_NUMBERS` says: 1024 images of 224 pixels, read
    ahead by some workers, would take gigabytes, and what a tower makes of them many more.

    Args:
        source: features or images.
        batch_size: rows to a batch, at most.
    """
    probe: Tensor | None = None
    if isinstance(source, (ImageSource, PixelSource)):
        probe = TransformedImages(source.split.images, source.transforms[:1])[0]
    elif isinstance(source, FeatureSource) and source.views[0].ndim > 2:
        probe = torch.empty(tuple(source.views[0].shape[1:]), device="meta")  # (T, w)
    if probe is not None:
        most = EVALUATION_NUMBERS["cuda" if source.labels.is_cuda else "cpu"]
        batch_size = max(1, min(batch_size, most // probe.numel()))
    return torch.arange(len(source)).split(batch_size)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system says
        return 4 << 30
