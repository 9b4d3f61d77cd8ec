"""The inspection of all images of a collection: from the cache, or by several processes."""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from PIL import Image

from imbalance_vlm.data.pixels import to_rgb
from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import bar
from imbalance_vlm.verification.collection import Collection, ListedImage
from imbalance_vlm.verification.inspection import (
    Inspection,
    Location,
    bombs_refused,
    error_text,
    inspect,
    inspect_image,
    state_of,
)
from imbalance_vlm.verification.inspection_cache import InspectionCache
from imbalance_vlm.workers import end_with_parent

FEW = 1000
"""Fewer images are inspected in this process; starting others takes longer."""
CHUNK = 256
"""Images handed to a process at a time."""


def inspect_images(collection: Collection, workers: int) -> list[Inspection]:
    """The inspection of each image of a collection, from the cache or made now."""
    images = collection.images
    results = [image.inspection for image in images]
    rows_of: dict[tuple[str, str], list[int]] = {}  # a file that is listed twice is read once
    for row, image in enumerate(images):
        if results[row] is None and image.location is not None:
            rows_of.setdefault((image.container, image.name), []).append(row)
    in_memory = [row for row, image in enumerate(images) if image.memory is not None]
    with InspectionCache() as cache, bar(len(images), "inspect", "img") as progress:
        keys, locations, states = [], [], []
        for key, (first, *_) in rows_of.items():
            image = images[first]
            if image.location is None:
                continue
            state = image.state or state_of(image.location.path)
            results[first] = state if isinstance(state, Inspection) else cache.get(*key, state)
            if results[first] is None and not isinstance(state, Inspection):
                keys.append(key)
                locations.append(image.location)
                states.append(state)
        progress.update(len(images) - len(keys) - len(in_memory))
        for number, inspection in inspect_all(locations, workers):
            results[rows_of[keys[number]][0]] = inspection
            cache.add(*keys[number], states[number], inspection)
            progress.update()
        for row in in_memory:
            results[row] = _inspect_in_memory(images[row])
            progress.update()
    for first, *repeats in rows_of.values():
        for row in repeats:
            results[row] = results[first]
    return [inspection or Inspection("unreadable") for inspection in results]


def _inspect_in_memory(image: ListedImage) -> Inspection:
    try:
        return inspect_image(load_image(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return Inspection("bomb", str(error))
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        return Inspection("unreadable", error_text(error))


def load_image(image: ListedImage) -> Image.Image:
    """The image itself in upright RGB, a JPEG file reduced to a size for display; raises whatever its decoder does."""
    with bombs_refused():
        if image.memory is not None:
            images, row = image.memory
            return images[row]
        if image.location is None:
            raise ValueError(f"{image.name} was read from a stream and cannot be read again")
        with Image.open(io.BytesIO(image.location.read())) as opened:
            opened.draft("RGB", (256, 256))
            return to_rgb(opened)


def inspect_all(locations: Sequence[Location], workers: int) -> Iterator[tuple[int, Inspection]]:
    """Row and inspection of every image, in the order in which they are finished; many are shared among processes.

    Raises:
        InputError: a process died, for lack of memory for example.
    """
    if len(locations) < FEW or workers < 2:
        for row, location in enumerate(locations):
            yield row, inspect(location)
        return
    chunks = iter(range(0, len(locations), CHUNK))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    running: dict[Future[list[Inspection]], int] = {}
    try:
        while True:
            while len(running) < 4 * workers and (start := next(chunks, None)) is not None:
                running[pool.submit(_inspect_chunk, locations[start : start + CHUNK])] = start
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                start = running.pop(done)
                yield from enumerate(done.result(), start)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that reads images has died, perhaps for lack of memory; set `workers` to 1 (in a script of "
            "your own, the call must stand below `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _inspect_chunk(locations: Sequence[Location]) -> list[Inspection]:
    return [inspect(location) for location in locations]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is left to the parent
    end_with_parent()
