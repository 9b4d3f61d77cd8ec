"""The feature cache: each image goes through a frozen tower once, for all recipes.

An entry is a folder named by the SHA-256 of everything that its numbers depend on (weights, view, images, precision,
kind of features). It holds `features.bin`, rows in C order, `features.sums`, the CRC-32 of each chunk of rows, and
`meta.json`. Rows are appended in chunks to `features.partial`; after a kill, the next run resumes from the last
complete chunk, and the finished file is moved into place in one step. Reading compares the checksums and maps the file,
so a set larger than memory needs memory only for the rows in use. It writes nothing: a complete entry may belong to
another user, or lie on a disk that is mounted for reading only.

Resized copies of images (`imbalance_vlm.data.resized_cache`) are kept beside the features, and are listed and pruned
here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, disk_errors, locked, read_json, write_json
from imbalance_vlm.progress import bar, note

CHUNK = 1024
"""Rows per chunk, the most that a kill loses. The batches are always the same, and so are the bytes after a resume."""
SUM = np.dtype("<u4")
"""How a checksum is stored."""
ARRAYS = ("features.bin", "features.partial")

Encode = Callable[[int], Iterator[NDArray[Any]]]
"""`encode(start)` yields the rows from `start` to the last, in order, in blocks of any size."""


def cache_limit() -> int:
    """Most bytes of the cache: $IMBALANCE_VLM_CACHE_GB (in 10^9 bytes), 50 by default."""
    gigabytes = os.environ.get("IMBALANCE_VLM_CACHE_GB", "50")
    try:
        limit = int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise InputError(f"$IMBALANCE_VLM_CACHE_GB must be a number of gigabytes, got {gigabytes!r}")
    return limit


@dataclass(frozen=True)
class CacheEntry:
    """A complete or partial entry, for listings."""

    folder: Path
    meta: Mapping[str, Any]
    bytes: int
    used: float
    complete: bool


class FeatureCache:
    """Arrays on disk, identified by everything that they were computed from.

    Args:
        root: its folder, created on the first write.
        limit: its most bytes; the least recently used entries are removed to make room.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None) -> None:
        self.root = (root or cache_folder()) / "features"
        self.limit = cache_limit() if limit is None else limit

    def get(self, made_from: Mapping[str, Any], shape: tuple[int, ...], dtype: str, encode: Encode) -> NDArray[Any]:
        """The array of `made_from`: read if it is in the cache, else computed by `encode`.

        Args:
            made_from: everything that the numbers depend on, as plain JSON values.
            shape: of the whole array, rows first.
            dtype: "float32" or "float16".
            encode: see `Encode`.

        Returns:
            A read-only memory map of `shape`. An entry that is damaged is computed again, with a note.

        Raises:
            InputError: an entry that cannot be written; too little space, on the disk or within the limit.
        """
        described = dict(made_from) | {"shape": list(shape), "dtype": dtype}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.root / key
        finished = folder / "features.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        chunk_bytes = size // shape[0] * CHUNK
        if not _is_sound(folder, size, chunk_bytes):
            self._check_limit(size)
            with disk_errors(folder, _REMEDY):
                folder.mkdir(parents=True, exist_ok=True)
            # A second run waits for the first and then reads its result.
            with locked(folder / "lock", _REMEDY):
                if not _is_sound(folder, size, chunk_bytes):
                    if finished.exists():
                        note(f"the cached features in {folder} are damaged, and are computed again")
                    self._make(folder, described, shape, np.dtype(dtype), encode)
        with suppress(OSError):  # another user's, or on a disk mounted for reading only
            os.utime(folder)
        try:
            return np.memmap(finished, dtype=dtype, mode="r", shape=shape)
        except FileNotFoundError:  # another process has just removed it to make room
            return self.get(made_from, shape, dtype, encode)

    def _make(
        self, folder: Path, described: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], encode: Encode
    ) -> None:
        rows, row_bytes = shape[0], int(np.prod(shape[1:])) * dtype.itemsize
        partial, sums = folder / "features.partial", folder / "features.sums"
        complete = _checked_chunks(partial, sums, row_bytes * CHUNK)
        start = min(complete * CHUNK, rows)
        self.prune(self.limit - rows * row_bytes, folder, finished_only=True)
        with disk_errors(folder, _REMEDY):
            write_json(folder / "meta.json", described)
            free = shutil.disk_usage(folder).free
            if free < (rows - start) * row_bytes:
                raise InputError(
                    f"the feature cache {self.root} needs {rows * row_bytes / 1e6:.0f} MB for {rows} images, the disk "
                    f"has {free / 1e6:.0f} MB left; {_REMEDY}"
                )
            for file in (partial, sums):
                file.touch()
            with (
                partial.open("r+b") as stream,
                sums.open("r+b") as sums_stream,
                bar(rows, f"encode {described.get('split', 'images')}", "img", start) as progress,
            ):
                for opened, position in ((stream, start * row_bytes), (sums_stream, complete * SUM.itemsize)):
                    opened.truncate(position)
                    opened.seek(position)
                done, checksum = start, 0
                for block in encode(start) if start < rows else ():
                    if block.shape[1:] != shape[1:]:
                        raise ValueError(f"encode({start}) must yield rows of shape {shape[1:]}, got {block.shape[1:]}")
                    block = np.ascontiguousarray(block, dtype=dtype)
                    for part in np.split(block, range(-done % CHUNK, len(block), CHUNK)):  # each within one chunk
                        content = part.tobytes()
                        stream.write(content)
                        stream.flush()
                        checksum = zlib.crc32(content, checksum)
                        done += len(part)
                        if len(part) and (done % CHUNK == 0 or done == rows):
                            sums_stream.write(np.array(checksum, SUM).tobytes())
                            sums_stream.flush()
                            checksum = 0
                    progress.update(len(block))
                if done != rows:
                    raise ValueError(f"encode({start}) must yield rows {start} to {rows}, got {done - start} rows")
                for opened in (stream, sums_stream):
                    os.fsync(opened.fileno())
        os.replace(partial, folder / "features.bin")

    def _check_limit(self, needed: int) -> None:
        if needed > self.limit:
            raise InputError(
                f"one feature array of {needed / 1e9:.1f} GB exceeds the cache limit of {self.limit / 1e9:.1f} GB; "
                "raise $IMBALANCE_VLM_CACHE_GB, or set encoder.cache to false to encode the images in every epoch"
            )

    def entries(self) -> Iterator[CacheEntry]:
        """All entries, the most recently used first."""
        entries = []
        for folder in self.root.glob("*/"):
            try:
                meta = read_json(folder / "meta.json")
            except (OSError, ValueError):
                meta = {}
            try:
                size = sum((folder / name).stat().st_size for name in ARRAYS if (folder / name).is_file())
                complete = (folder / "features.bin").is_file()
                entries.append(CacheEntry(folder, meta, size, folder.stat().st_mtime, complete))
            except OSError:  # removed since, or another user's
                continue
        yield from sorted(entries, key=lambda entry: -entry.used)

    def prune(
        self, limit: int, keep: Path | None = None, older_than: float | None = None, finished_only: bool = False
    ) -> list[CacheEntry]:
        """Remove the least recently used entries until at most `limit` bytes remain.

        Args:
            limit: bytes that may remain.
            keep: an entry that is not removed.
            older_than: also remove all entries unused for this many seconds.
            finished_only: keep partial entries, which another run may be writing.

        Returns:
            The entries that were removed.
        """
        removed, total = [], 0
        now = time.time()
        for entry in self.entries():
            if entry.folder == keep or (finished_only and not entry.complete):
                continue
            total += entry.bytes
            if (total > limit or (older_than is not None and now - entry.used > older_than)) and _remove(entry.folder):
                total -= entry.bytes
                removed.append(entry)
        return removed


class ImageCopies:
    """The resized copies of images: `images/<size>/<two letters>/<name>.npy` in the cache folder.

    A run makes the copies that it does not find, so any of them can be removed at any time. A copy was last used when
    it was written or read, as far as the file system records reads.

    Args:
        root: the cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_folder()) / "images"

    def entries(self) -> Iterator[CacheEntry]:
        """One entry per size, for all copies of that size, the smallest first."""
        sizes = [folder for folder in self.root.glob("*/") if folder.name.isdigit()]
        for folder in sorted(sizes, key=lambda folder: int(folder.name)):
            copies = list(_copies(folder))
            if copies:
                used, total = max(used for used, _, _ in copies), sum(size for _, size, _ in copies)
                yield CacheEntry(folder, {"size": int(folder.name), "copies": len(copies)}, total, used, True)

    def prune(self, limit: int, older_than: float | None = None) -> tuple[int, int]:
        """Remove the least recently used copies until at most `limit` bytes remain.

        Args:
            limit: bytes that may remain.
            older_than: also remove all copies unused for this many seconds.

        Returns:
            The number of copies removed, and their bytes.
        """
        removed, freed, total = 0, 0, 0
        now = time.time()
        for used, size, path in sorted(_copies(self.root), reverse=True):
            total += size
            if total <= limit and (older_than is None or now - used <= older_than):
                continue
            try:
                path.unlink()
            except OSError:  # another process has removed it, or has it open
                continue
            removed, freed, total = removed + 1, freed + size, total - size
        return removed, freed


def _copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each copy was last used, its bytes and its path; of partial copies, only those that no run is writing."""
    hour_ago = time.time() - 3600
    for path in folder.rglob("*.npy"):
        try:
            status = path.stat()
        except OSError:  # removed since
            continue
        if not path.name.startswith(".") or status.st_mtime < hour_ago:
            yield max(status.st_mtime, status.st_atime), status.st_size, path


def _remove(folder: Path) -> bool:
    """Remove an entry, unless a run is writing it."""
    try:
        with locked(folder / "lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except (Timeout, InputError):  # being written, or another user's
        return False
    return not folder.exists()


def _is_sound(folder: Path, size: int, chunk_bytes: int) -> bool:
    """Whether an entry is complete, of this many bytes, and as it was written."""
    try:
        if (folder / "features.bin").stat().st_size != size:  # truncated, by a copy or a disk repair
            return False
    except OSError:
        return False
    return _checked_chunks(folder / "features.bin", folder / "features.sums", chunk_bytes) == -(-size // chunk_bytes)


def _checked_chunks(file: Path, sums: Path, chunk_bytes: int) -> int:
    """The number of chunks from the first one that agree with their checksums."""
    try:
        content, expected = np.memmap(file, np.uint8, "r"), np.fromfile(sums, SUM)
    except (OSError, ValueError):  # none, or empty
        return 0
    for number, checksum in enumerate(expected.tolist()):
        chunk = content[number * chunk_bytes : (number + 1) * chunk_bytes]
        if not len(chunk) or zlib.crc32(chunk.data) != checksum:
            return number
    return len(expected)


_REMEDY = (
    "free some space (`imbalance-vlm cache prune`), put the cache elsewhere ($IMBALANCE_VLM_CACHE), "
    "or set encoder.cache to false"
)
