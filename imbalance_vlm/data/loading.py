"""Pictures to batches of tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from imbalance_vlm.data.dataset import ArrayImages, Images
from imbalance_vlm.errors import InputError

Transform = Callable[[Image.Image], Tensor]


class TransformedImages(TorchDataset[Tensor]):
    """Pictures as (3, H, W) tensors; a file that cannot be read is named."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        try:
            picture = self.images[index]
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"image {self.images.name(index)!r} cannot be read: {error}") from error
        return self.transform(picture)


def pixel_batches(images: Images, transform: Transform, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """(B, 3, H, W) for each list of indices, in order; files are decoded by one worker a core, ahead of use."""
    source = TransformedImages(images, transform)
    in_memory = isinstance(images, ArrayImages)
    workers = 0 if in_memory or len(batches) < 2 else min(8, os.cpu_count() or 1)
    loader = DataLoader(
        source,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the global one must not move when features are not cached yet
    )
    yield from loader
