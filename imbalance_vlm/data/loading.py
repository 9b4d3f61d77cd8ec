"""Images to batches of tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from imbalance_vlm import launcher
from imbalance_vlm.data.dataset import ArrayImages, FileImages, Images
from imbalance_vlm.data.decoding import (
    OnTensor,
    decode,
    decode_on,
    encoded,
    on_image,
    on_tensors,
    on_whole_batch,
)
from imbalance_vlm.errors import InputError, one_of

Transform = Callable[[Image.Image], Tensor]
Decoder = Literal["pil", "torchvision", "gpu"]
DECODERS: tuple[Decoder, ...] = ("pil", "torchvision", "gpu")

MOST_WORKERS = 16
AHEAD = 4
"""Batches that each worker has ready before they are asked for, where there are workers."""


class TransformedImages(TorchDataset[Tensor]):
    """Images as (3, H, W) tensors, by number or by (view, number); a file that cannot be read is named.

    Args:
        images: the images.
        transforms: one for each view.
        decoder: "pil"; or "torchvision", as far as a transform has a counterpart on tensors; or "gpu", which leaves the
            bytes of JPEG files as they are, for `decode_on`, where it has one.
    """

    def __init__(self, images: Images, transforms: Sequence[Transform], decoder: Decoder = "pil") -> None:
        self.images = images
        self.transforms = transforms
        fast = decoder != "pil"
        if fast:
            self.transforms = [on_image(transform) or transform for transform in transforms]
        of_files = fast and isinstance(images, FileImages)
        self.of_files = [on_tensors(transform) if of_files else None for transform in transforms]
        self.on_gpu = [decoder == "gpu" and on_tensor is not None for on_tensor in self.of_files]
        self.of_arrays = [self._of_array(transform, fast) for transform in transforms]

    def _of_array(self, transform: Transform, fast: bool) -> OnTensor | None:
        """What preprocesses a whole batch of images in memory, which have one size; None where none does."""
        if not isinstance(self.images, ArrayImages):
            return None
        exact = on_whole_batch(transform, *self.images.pixels.shape[1:3])
        return exact or (on_tensors(transform) if fast else None)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Tensor | list[Tensor]:
        """A batch of one view: (B, 3, H, W); or what is decoded on the GPU, image by image."""
        view = keys[0][0]
        of_array = self.of_arrays[view]
        if of_array is not None and isinstance(self.images, ArrayImages):
            pixels = torch.from_numpy(self.images.pixels[[row for _, row in keys]])
            return of_array(pixels.permute(0, 3, 1, 2))
        found = [self[key] for key in keys]
        return found if self.on_gpu[view] else torch.stack(found)

    def __getitem__(self, index: int | tuple[int, int]) -> Tensor:
        view, row = index if isinstance(index, tuple) else (0, index)
        on_tensor = self.of_files[view]
        try:
            if self.on_gpu[view] and isinstance(self.images, FileImages):
                return encoded(self.images.root / self.images.paths[row])
            if on_tensor is not None and isinstance(self.images, FileImages):
                return on_tensor(decode(self.images.root / self.images.paths[row]))
            image = self.images[row]
        except InputError:  # of the disk that takes copies
            raise
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"image {self.images.name(row)!r} cannot be read: {error}") from error
        return self.transforms[view](image)


class PixelLoader:
    """Decodes images ahead of use, in workers that stay from one pass to the next.

    Args:
        images: the images.
        transforms: one for each view.
        decoder: "pil"; "torchvision", which is twice as fast and differs by a step of 255 at most; "gpu", by which
            workers only read JPEG files and the GPU decodes and scales them, where `device` is one, and else is
            "torchvision". See `imbalance_vlm.data.decoding`.
        workers: processes that decode; left out, one a core of those that this process has to itself, and none for
            images in memory.
        device: where batches will be wanted.

    Raises:
        InputError: an unknown decoder.
    """

    def __init__(
        self,
        images: Images,
        transforms: Sequence[Transform],
        decoder: Decoder = "pil",
        workers: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        if decoder not in DECODERS:
            raise InputError(f"`decoder` must be {one_of(DECODERS)}, got {decoder!r}")
        self.device = device or torch.device("cpu")
        if decoder == "gpu" and self.device.type != "cuda":
            decoder = "torchvision"
        self.dataset = TransformedImages(images, transforms, decoder)
        in_memory = isinstance(images, ArrayImages)
        self.workers = workers if workers is not None else 0 if in_memory else cores_for_workers()
        self._order: list[list[tuple[int, int]]] = []
        self._staying: DataLoader[Tensor] | None = None
        self._busy = False

    def batches(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[Tensor]:
        """(B, 3, H, W) of a view, for each list of numbers, in order.

        Raises:
            InputError: an image that cannot be read, or a copy of one that cannot be written.
        """
        for number, batch in enumerate(self._loaded(batches, view)):
            yield self._decoded(batch, batches[number], view) if isinstance(batch, list) else batch

    def _decoded(self, files: list[Tensor], rows: Sequence[int], view: int) -> Tensor:
        """What the workers have read, decoded and preprocessed on the GPU."""
        on_tensor = self.dataset.of_files[view]
        if on_tensor is None:
            raise TypeError("only files that were read for a transform on tensors are decoded later")
        try:
            return torch.stack([on_tensor(image) for image in decode_on(self.device, files)])
        except (OSError, ValueError, SyntaxError) as error:
            names = ", ".join(self.dataset.images.name(row) for row in rows[:5])
            raise InputError(f"an image of the batch that begins with {names} cannot be read: {error}") from error

    def _loaded(self, batches: Sequence[Sequence[int]], view: int) -> Iterator[Tensor | list[Tensor]]:
        try:
            yield from self._from_workers(batches, view)
        except InputError as error:  # of a worker, with the worker's whole stack in its words
            said = str(error).rpartition(f"{InputError.__name__}: ")[2].strip()
            raise InputError(said) from error

    def _from_workers(self, batches: Sequence[Sequence[int]], view: int) -> Iterator[Tensor | list[Tensor]]:
        order = [[(view, row) for row in rows] for rows in batches]
        if len(order) < 2 or not self.workers:
            yield from self._loader(order, 0, stays=False)
        elif self._busy:  # two passes at once: each has its own workers
            yield from self._loader(order, self.workers, stays=False)
        else:
            self._order[:] = order
            self._staying = self._staying or self._loader(self._order, self.workers, stays=True)
            self._busy = True
            try:
                yield from self._staying
            finally:
                self._busy = False

    def _loader(self, order: list[list[tuple[int, int]]], workers: int, stays: bool) -> DataLoader[Tensor]:
        return DataLoader(
            self.dataset,
            collate_fn=_as_it_is,
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=stays,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: the global one must not move when features are not cached yet
        )


def _as_it_is(batch: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """The dataset gives whole batches."""
    return batch


def cores_for_workers() -> int:
    """Cores of this machine for each of the processes that train on it."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // launcher.local_world_size()))


def pixel_batches(images: Images, transform: Transform, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """(B, 3, H, W) for each list of indices, in order; files are decoded by one worker a core, ahead of use."""
    yield from PixelLoader(images, [transform]).batches(batches)
