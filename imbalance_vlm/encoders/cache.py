"""The feature cache: each image goes through a frozen tower once, for all recipes.

An entry is a folder named by the SHA-256 of all that its numbers depend on (weights, transform, images, precision,
view, kind of feature). It holds `features.bin`, rows in C order, and `meta.json`. Rows are appended chunk by chunk to
`features.partial`; a killed run goes on behind the last whole chunk, and the finished file is moved into place in one
step. Reading maps the file, so a set larger than memory costs no more than the rows in use.

Beside the features lie smaller copies of images (`imbalance_vlm.data.resized_cache`), which are listed and pruned here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, disk_errors, write_json
from imbalance_vlm.progress import bar

CHUNK = 1024
"""Rows to a chunk: what a killed run may lose; always the same batches, so a resumed entry has the same bytes."""

Encode = Callable[[int], Iterator[NDArray[Any]]]
"""`encode(start)` gives the rows from `start` to the last, in order, in blocks of any size."""


def cache_limit() -> int:
    """Bytes the cache may take: $IMBALANCE_VLM_CACHE_GB (a number of 10^9 bytes), 50 by default."""
    given = os.environ.get("IMBALANCE_VLM_CACHE_GB", "50")
    try:
        limit = int(float(given) * 1e9)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise InputError(f"$IMBALANCE_VLM_CACHE_GB must be a number of gigabytes, got {given!r}")
    return limit


@dataclass(frozen=True)
class CacheEntry:
    """One finished or unfinished entry, for listings."""

    folder: Path
    meta: Mapping[str, Any]
    bytes: int
    used: float
    complete: bool


class FeatureCache:
    """Arrays on disk, by what they were made from.

    Args:
        root: its folder; made when first written to.
        limit: bytes it may take; the entries unused for longest make room.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None) -> None:
        self.root = (root or cache_folder()) / "features"
        self.limit = cache_limit() if limit is None else limit

    def get(self, made_from: Mapping[str, Any], shape: tuple[int, ...], dtype: str, encode: Encode) -> NDArray[Any]:
        """The array made from `made_from`, read if it is there, else made by `encode`.

        Args:
            made_from: everything the numbers depend on, as plain JSON values.
            shape: of the whole array, rows first.
            dtype: "float32" or "float16".
            encode: called with a row, gives the blocks from there on.

        Returns:
            A read-only memory map of `shape`.

        Raises:
            InputError: no space for it, on the disk or within the limit.
        """
        described = dict(made_from) | {"shape": list(shape), "dtype": dtype}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.root / key
        finished = folder / "features.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if finished.is_file() and finished.stat().st_size != size:  # cut short, by a copy or a repaired disk
            finished.unlink(missing_ok=True)
        if not finished.is_file():
            self._check_limit(size)
            with disk_errors(folder, _REMEDY):
                folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder / "lock")):  # a second run waits for the first and then reads
                if not finished.is_file():
                    self._make(folder, described, shape, np.dtype(dtype), encode)
        try:
            os.utime(folder)
            return np.memmap(finished, dtype=dtype, mode="r", shape=shape)
        except FileNotFoundError:  # another process has just made room
            return self.get(made_from, shape, dtype, encode)

    def _make(
        self, folder: Path, described: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], encode: Encode
    ) -> None:
        rows, row_bytes = shape[0], int(np.prod(shape[1:])) * dtype.itemsize
        partial = folder / "features.partial"
        have = partial.stat().st_size if partial.is_file() else 0
        start = have // row_bytes // CHUNK * CHUNK
        self.prune(self.limit - rows * row_bytes, folder, finished_only=True)
        with disk_errors(folder, _REMEDY):
            write_json(folder / "meta.json", described)
            free = shutil.disk_usage(folder).free
            if free < (rows - start) * row_bytes:
                raise InputError(
                    f"the feature cache {self.root} needs {rows * row_bytes / 1e6:.0f} MB for {rows} images, the disk "
                    f"has {free / 1e6:.0f} MB left; {_REMEDY}"
                )
            with (
                partial.open("r+b" if have else "wb") as stream,
                bar(rows, f"encode {described.get('split', 'images')}", "img", start) as progress,
            ):
                stream.truncate(start * row_bytes)
                stream.seek(start * row_bytes)
                done = start
                for block in encode(start):
                    if block.shape[1:] != shape[1:]:
                        raise ValueError(f"encode({start}) must give rows of shape {shape[1:]}, got {block.shape[1:]}")
                    stream.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
                    stream.flush()
                    done += len(block)
                    progress.update(len(block))
                if done != rows:
                    raise ValueError(f"encode({start}) must give rows {start} to {rows}, got {done - start} rows")
                os.fsync(stream.fileno())
        os.replace(partial, folder / "features.bin")

    def _check_limit(self, needed: int) -> None:
        if needed > self.limit:
            raise InputError(
                f"one feature array of {needed / 1e9:.1f} GB exceeds the cache limit of {self.limit / 1e9:.1f} GB; "
                "raise $IMBALANCE_VLM_CACHE_GB, or set encoder.cache to false to encode anew each epoch"
            )

    def entries(self) -> Iterator[CacheEntry]:
        """All entries, the one used last first."""
        found = []
        for folder in self.root.glob("*/"):
            try:
                meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                meta = {}
            size = sum(file.stat().st_size for file in folder.glob("features.*"))
            complete = (folder / "features.bin").is_file()
            found.append(CacheEntry(folder, meta, size, folder.stat().st_mtime, complete))
        yield from sorted(found, key=lambda entry: -entry.used)

    def prune(
        self, limit: int, keep: Path | None = None, older_than: float | None = None, finished_only: bool = False
    ) -> list[CacheEntry]:
        """Remove the entries unused for longest until at most `limit` bytes remain; returns what was removed.

        Args:
            limit: bytes that may remain.
            keep: an entry that stays in any case.
            older_than: also remove all entries unused for this many seconds.
            finished_only: leave entries alone that another run may be writing.
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
    """The smaller copies of images, by size: `images/<size>/<two letters>/<name>.npy` in the cache folder.

    A run that misses one makes it anew, so any of them can go at any time. A copy counts as used when it was made or
    last read, as far as the disk notes that.

    Args:
        root: the cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_folder()) / "images"

    def entries(self) -> Iterator[CacheEntry]:
        """One for all copies of a size, the smallest first."""
        sizes = [folder for folder in self.root.glob("*/") if folder.name.isdigit()]
        for folder in sorted(sizes, key=lambda folder: int(folder.name)):
            found = list(_copies(folder))
            if found:
                used, total = max(used for used, _, _ in found), sum(size for _, size, _ in found)
                yield CacheEntry(folder, {"size": int(folder.name), "copies": len(found)}, total, used, True)

    def prune(self, limit: int, older_than: float | None = None) -> tuple[int, int]:
        """Remove the copies unused for longest until at most `limit` bytes remain; how many went, and their bytes.

        Args:
            limit: bytes that may remain.
            older_than: also remove all copies unused for this many seconds.
        """
        removed, freed, total = 0, 0, 0
        now = time.time()
        for used, size, path in sorted(_copies(self.root), reverse=True):
            total += size
            if total <= limit and (older_than is None or now - used <= older_than):
                continue
            try:
                path.unlink()
            except OSError:  # another process was faster, or holds it
                continue
            removed, freed, total = removed + 1, freed + size, total - size
        return removed, freed


def _copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each copy was used, its bytes and its path; of unfinished ones those that no run can be writing."""
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
        with FileLock(str(folder / "lock"), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    return True


_REMEDY = (
    "free some space (`imbalance-vlm cache prune`), put the cache elsewhere ($IMBALANCE_VLM_CACHE), "
    "or set encoder.cache to false"
)
