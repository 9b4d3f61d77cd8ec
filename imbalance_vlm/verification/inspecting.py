"""What one image's bytes say: whether they decode to the last one, and two hashes to find it again by.

JPEG files are decoded in grey and as small as their transform allows, which reads all their data and stops at the same
files as a full decode does. Measured on a JPEG file of 500 x 375 pixels and 79 kB, cut at 120 places: PIL in full .87
ms, PIL so .59 ms, torchvision .84 ms, and all three refuse the same cuts (a progressive file: 2.3, 2.1, 2.2 ms); on
32 x 32 pixels 59, 48 and 23 microseconds, where reading the file and hashing cost as much again.

The perceptual hash is a difference hash on 9 x 9 grey values: which of two neighbours is brighter, to the right (64
bits) and downwards (64 bits). The packages that offer one keep 64 bits of one direction, in which small drawings
collide, and bring more dependencies than these ten lines are worth.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import stat
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import wait as wait_for_end

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imbalance_vlm.data.dataset import rgb
from imbalance_vlm.errors import InputError

MOST_PIXELS = 89_478_485
"""Pixels that an image may declare: PIL's own limit, a quarter of a GB in RGB."""
MOST_BYTES = 1 << 29
"""Bytes of an image that are read into memory."""
FLAT = 12
"""An image whose 9 x 9 grey values span less shows nothing to be recognised by, and gets no perceptual hash."""
FEW = 1000
"""So many images are inspected here; more pay for processes."""
CHUNK = 256
"""Images handed to a process at a time."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of an image lie: a file, a stretch of one, or a member of a zip archive."""

    path: str
    start: int = -1  # first byte, or the number of the member
    length: int = -1
    member: str = ""

    def read(self) -> bytes:
        if self.member:
            archive = _zip(self.path)
            with archive.open(archive.infolist()[self.start]) as stream:
                return stream.read(MOST_BYTES + 1)
        with open(self.path, "rb") as stream:
            if self.start >= 0:
                stream.seek(self.start)
            return stream.read(self.length if self.start >= 0 else MOST_BYTES + 1)


@dataclass(frozen=True)
class Inspected:
    """What was found.

    Args:
        problem: "missing", "zero_byte", "truncated", "unreadable", "bomb", or nothing.
        detail: the decoder's words.
        content: hash of the bytes, in hexadecimal digits.
        look: perceptual hash, 128 bits in hexadecimal digits; empty where there is none.
        width: in pixels.
        height: in pixels.
    """

    problem: str = ""
    detail: str = ""
    content: str = ""
    look: str = ""
    width: int = 0
    height: int = 0


@lru_cache(maxsize=2)
def _zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def inspect(place: Place) -> Inspected:
    """One image; every way in which it can be damaged is a finding, none is an error."""
    try:
        content = place.read()
    except FileNotFoundError:
        return Inspected("missing")
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        return Inspected("unreadable", _words(error))
    return inspect_bytes(content)


def inspect_bytes(content: bytes) -> Inspected:
    """One image by its bytes."""
    if not content:
        return Inspected("zero_byte")
    if len(content) > MOST_BYTES:
        return Inspected("bomb", f"more than {MOST_BYTES >> 20} MB")
    digest = hashlib.sha256(content).hexdigest()[:32]
    width = height = 0
    try:
        with (
            bombs_refused(),
            Image.open(io.BytesIO(content)) as image,
        ):
            width, height = image.size
            image.draft("L", (32, 32))
            image.load()
            return Inspected("", "", digest, look(image), width, height)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Inspected("bomb", f"declares more than {MOST_PIXELS:,} pixels", digest, "", width, height)
    except UnidentifiedImageError:
        return Inspected("unreadable", "not an image in a format that PIL knows", digest)
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        words = _words(error)
        cut = any(word in words.lower() for word in ("truncated", "premature", "unexpected end"))
        return Inspected("truncated" if cut else "unreadable", words, digest, "", width, height)


def inspect_image(image: Image.Image) -> Inspected:
    """A decoded image: its content is its pixels."""
    content = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]
    return Inspected("", "", content, look(image), *image.size)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """While this lasts, PIL refuses images of more than MOST_PIXELS and says nothing else."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def look(image: Image.Image) -> str:
    """The perceptual hash, in hexadecimal digits; empty for a flat image."""
    grey = grey_values(image, 9)  # (9, 9)
    if int(grey.max()) - int(grey.min()) < FLAT:
        return ""
    right = grey[:8, 1:] > grey[:8, :-1]  # (8, 8)
    down = grey[1:, :8] > grey[:-1, :8]  # (8, 8)
    return np.packbits(np.concatenate([right.ravel(), down.ravel()])).tobytes().hex()


def grey_values(image: Image.Image, side: int) -> NDArray[np.int16]:
    """(side, side) mean grey values; what is transparent counts as white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = image if image.mode == "L" else rgb(image).convert("L")
    return np.asarray(grey.resize((side, side), Image.Resampling.BOX), np.int16)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def state(path: str) -> tuple[int, int] | Inspected:
    """Size and time of a file, or what is wrong with it without a look inside."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Inspected("missing", "a link to nowhere" if os.path.islink(path) else "")
    except (OSError, ValueError) as error:
        return Inspected("unreadable", _words(error))
    if not stat.S_ISREG(status.st_mode):
        return Inspected("unreadable", "not a file")
    if status.st_size == 0:
        return Inspected("zero_byte")
    return status.st_size, status.st_mtime_ns


# -- in parallel -----------------------------------------------------------------------------------------------------
def inspect_all(places: Sequence[Place], workers: int) -> Iterator[tuple[int, Inspected]]:
    """Number and findings of every image, in the order in which they are done.

    Raises:
        InputError: a process died.
    """
    if len(places) < FEW or workers < 2:
        for row, place in enumerate(places):
            yield row, inspect(place)
        return
    chunks = iter(range(0, len(places), CHUNK))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    running: dict[Future[list[Inspected]], int] = {}
    try:
        while True:
            while len(running) < 4 * workers and (start := next(chunks, None)) is not None:
                running[pool.submit(_inspect_chunk, places[start : start + CHUNK])] = start
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                start = running.pop(done)
                yield from enumerate(done.result(), start)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that reads images has died, for lack of memory perhaps; set `workers` to 1 (in a script of "
            "your own, the call must stand below `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _inspect_chunk(places: Sequence[Place]) -> list[Inspected]:
    return [inspect(place) for place in places]


def _begin() -> None:
    """Ctrl-C is the parent's to answer, and a parent that was killed leaves no process behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_end([sentinel])
    os._exit(1)
