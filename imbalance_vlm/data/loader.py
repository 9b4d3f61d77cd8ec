"""Images to batches of tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from imbalance_vlm.data.dataset import ArrayImages, FileImages, Images
from imbalance_vlm.data.decoders import decode, decode_on, encoded
from imbalance_vlm.data.preprocessing import Preprocessing, View, with_tensors
from imbalance_vlm.errors import InputError, one_of
from imbalance_vlm.launcher import local_world_size
from imbalance_vlm.workers import end_with_parent

Decoder = Literal["pil", "torchvision", "gpu"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)

MAX_WORKERS = 16
PREFETCHED = 4
"""Batches that each worker prepares in advance."""
PATIENCE = 600.0
"""Seconds after which a batch that no worker has delivered is given up."""

Batch = Tensor | list[Tensor]
"""A batch (B, 3, H, W), or the files of one, which the GPU still has to decode."""
Sent = Batch | NDArray[Any] | list[NDArray[Any]]
"""A batch as a worker sends it."""


class TransformedImages(TorchDataset[Tensor]):
    """Images as (3, H, W) tensors, by row or by (view, row).

    Args:
        images: the images.
        views: transforms from images to tensors.
        decoder: "pil"; "torchvision", for views that have a form on tensors; or "gpu", which for those reads the bytes
            of JPEG files without decoding them; see `decode_on`.
    """

    def __init__(self, images: Images, views: Sequence[View], decoder: Decoder = "pil") -> None:
        self.images = images
        on_tensors = decoder != "pil"
        self.views = [with_tensors(view) for view in views] if on_tensors else list(views)
        files_to_tensors = on_tensors and isinstance(images, FileImages)
        self.preprocessings = [_with_tensor_form(view) if files_to_tensors else None for view in views]
        self.gpu_decodes = [decoder == "gpu" and view is not None for view in self.preprocessings]
        self.batch_transforms = [self._batch_transform(view, on_tensors) for view in views]

    def _batch_transform(self, view: View, on_tensors: bool) -> Callable[[Tensor], Tensor] | None:
        """A function that prepares a batch of images in memory, which all have one size, in one step; or None."""
        if not isinstance(self.images, ArrayImages) or not isinstance(view, Preprocessing):
            return None
        if view.only_normalises(*self.images.pixels.shape[1:3]):
            return view.normalise
        preprocessing = _with_tensor_form(view) if on_tensors else None
        return preprocessing.on_tensors if preprocessing else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | InputError:
        """A batch of one view. An error is returned: raised in a worker, it would be wrapped in a stack trace."""
        view = keys[0][0]
        batch_transform = self.batch_transforms[view]
        if batch_transform is not None and isinstance(self.images, ArrayImages):
            pixels = torch.from_numpy(self.images.pixels[[row for _, row in keys]])
            return batch_transform(pixels.permute(0, 3, 1, 2))
        try:
            tensors = [self[key] for key in keys]
        except InputError as error:
            return error
        return tensors if self.gpu_decodes[view] else torch.stack(tensors)

    def __getitem__(self, index: int | tuple[int, int]) -> Tensor:
        """One image.

        Raises:
            InputError: a file that cannot be read, with its name.
        """
        view, row = index if isinstance(index, tuple) else (0, index)
        preprocessing = self.preprocessings[view]
        try:
            if preprocessing is not None and isinstance(self.images, FileImages):
                path = self.images.root / self.images.paths[row]
                return encoded(path) if self.gpu_decodes[view] else preprocessing.on_tensors(decode(path))
            image = self.images[row]
        except InputError:  # a resized copy that cannot be written
            raise
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"image {self.images.name(row)!r} cannot be read: {error}") from error
        return self.views[view](image)


def _with_tensor_form(view: View) -> Preprocessing | None:
    return view if isinstance(view, Preprocessing) and view.has_tensor_form else None


class PassSampler(Sampler[list[tuple[int, int]]]):
    """The batches of the next pass, as lists of (view, row): workers that stay alive ask for them at each pass."""

    def __init__(self, batches: Sequence[Sequence[int]] = (), view: int = 0) -> None:
        self.set(batches, view)

    def set(self, batches: Sequence[Sequence[int]], view: int) -> None:
        """Choose the batches of the next pass."""
        self._batches = [[(view, row) for row in rows] for rows in batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches)


class PixelLoader:
    """Loads images ahead of use, in worker processes that are kept from one pass to the next.

    Args:
        images: the images.
        views: transforms from images to tensors.
        decoder: "pil"; "torchvision", which is twice as fast and differs by at most one step of 255; or "gpu": workers
            only read JPEG files, and the GPU decodes and scales them. Without a GPU, "gpu" is "torchvision". See
            `imbalance_vlm.data.decoders`.
        workers: worker processes; None for one per core that this process has to itself, or none at all for images in
            memory.
        device: where the batches will be used.

    Raises:
        InputError: an unknown decoder.
    """

    def __init__(
        self,
        images: Images,
        views: Sequence[View],
        decoder: Decoder = "pil",
        workers: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        if decoder not in DECODERS:
            raise InputError(f"`decoder` must be {one_of(DECODERS)}, got {decoder!r}")
        self.device = device or torch.device("cpu")
        if decoder == "gpu" and self.device.type != "cuda":
            decoder = "torchvision"
        self.dataset = TransformedImages(images, views, decoder)
        in_memory = isinstance(images, ArrayImages)
        self.workers = workers if workers is not None else 0 if in_memory else cores_for_workers()
        self._sampler = PassSampler()
        self._persistent: DataLoader[Tensor] | None = None
        self._busy = False

    def batches(self, batches: Sequence[Sequence[int]], view: int = 0) -> Iterator[Tensor]:
        """Load batches of a view.

        Args:
            batches: the rows of each batch.
            view: position among the views.

        Yields:
            (B, 3, H, W) for each batch, in order.

        Raises:
            InputError: an image that cannot be read, or a resized copy that cannot be written.
        """
        with closing(self._loaded(batches, view)) as loaded:
            for rows, batch in zip(batches, loaded, strict=True):
                if isinstance(batch, InputError):
                    raise batch
                tensors = _map(torch.as_tensor, batch)
                yield self._decoded(tensors, rows, view) if isinstance(tensors, list) else tensors

    def _decoded(self, files: list[Tensor], rows: Sequence[int], view: int) -> Tensor:
        """Decode and preprocess on the GPU what the workers have read."""
        preprocessing = self.dataset.preprocessings[view]
        if preprocessing is None:
            raise TypeError("only files read for a preprocessing on tensors are decoded later")
        try:
            return torch.stack([preprocessing.on_tensors(image) for image in decode_on(self.device, files)])
        except (OSError, ValueError, SyntaxError) as error:
            names = ", ".join(self.dataset.images.name(row) for row in rows[:5])
            raise InputError(f"an image of the batch that begins with {names} cannot be read: {error}") from error

    def _loaded(self, batches: Sequence[Sequence[int]], view: int) -> Generator[Sent | InputError, None, None]:
        if len(batches) < 2 or not self.workers:
            yield from self._loader(PassSampler(batches, view), workers=0)
        elif self._busy:  # a second pass at the same time has workers of its own
            with _worker_errors():
                yield from self._loader(PassSampler(batches, view), self.workers)
        else:
            self._sampler.set(batches, view)
            self._persistent = self._persistent or self._loader(self._sampler, self.workers, persistent=True)
            self._busy = True
            try:
                with _worker_errors():
                    yield from self._persistent
            except InputError:
                self._persistent = None  # it cannot be used again
                raise
            finally:
                self._busy = False

    def _loader(self, sampler: PassSampler, workers: int, persistent: bool = False) -> DataLoader[Tensor]:
        return DataLoader(
            self.dataset,
            collate_fn=_whole_batch if workers == 0 else _shared,
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=persistent,
            prefetch_factor=PREFETCHED if workers else None,
            timeout=PATIENCE if workers else 0,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global generator must not move when features are not cached yet
        )


def _whole_batch(batch: Batch | InputError) -> Batch | InputError:
    """`TransformedImages.__getitems__` returns whole batches, so there is nothing to collate."""
    return batch


def _start_worker(number: int) -> None:
    end_with_parent()


def _shared(batch: Batch | InputError) -> Sent | InputError:
    """Put a batch into shared memory, or leave it to the pipe between the processes where that is full.

    Left to torch, this would happen in a thread whose errors lose the batch, for which the main process waits.
    """
    if isinstance(batch, InputError):
        return batch
    try:
        return _map(Tensor.share_memory_, batch)
    except (RuntimeError, OSError):  # containers often have only 64 MB of it
        return _map(Tensor.numpy, batch)


def _map(function: Callable[[Any], Any], batch: Any) -> Any:
    return [function(tensor) for tensor in batch] if isinstance(batch, list) else function(batch)


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Report workers that cannot be started, that have died or that deliver nothing."""
    try:
        yield
    except OSError as error:
        raise InputError(f"the processes that read images cannot be started: {error}; {_REMEDY}") from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise InputError(
            f"a process that reads images has died, or delivers nothing: {' '.join(str(error).split())}; {_REMEDY}"
        ) from error


_REMEDY = (
    "give this machine or container more memory and shared memory (docker run --shm-size=1g), look for files that "
    "cannot be read, and start again: finished work is kept"
)


def cores_for_workers() -> int:
    """Cores of this machine per process that trains on it."""
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // local_world_size()))


def pixel_batches(images: Images, view: View, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """(B, 3, H, W) for each list of rows, in order; one worker per core decodes files ahead of use."""
    yield from PixelLoader(images, [view]).batches(batches)
