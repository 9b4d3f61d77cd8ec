"""Inspections kept between calls, outside of the user's folders: a second call reads only what has changed."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, disk_errors
from imbalance_vlm.verification.inspection import Inspection

VERSION = 1
"""Increased whenever `inspect` gives other results."""
CHUNK = 2048
"""Inspections written at a time: the most that a killed call may lose."""
PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""

T = TypeVar("T")


class InspectionCache:
    """A table of inspections in an SQLite file in the cache folder, which several processes may use at once.

    An inspection is found again by the image's container (its folder or archive), name, size and time. A damaged file
    is replaced by an empty one.
    """

    def __init__(self) -> None:
        self.path = cache_folder() / f"inspections-{VERSION}.sqlite"
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._new: list[tuple[object, ...]] = []
        with _database_errors(self.path):
            self._database = _connect(self.path)

    def __enter__(self) -> InspectionCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._database.close()

    def get(self, container: str, name: str, size: int, stamp: int) -> Inspection | None:
        """The inspection of an image, or None where there is none of its present size and time."""
        query = (
            "SELECT problem, detail, content, perceptual_hash, width, height FROM inspections "
            "WHERE key = ? AND size = ? AND stamp = ?"
        )
        row = self._retried(lambda: self._database.execute(query, (_key(container, name), size, stamp)).fetchone())
        return None if row is None else Inspection(*row)

    def add(self, container: str, name: str, size: int, stamp: int, inspection: Inspection) -> None:
        """Keep an inspection; an older one of the same image is replaced."""
        words = [
            value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for value in astuple(inspection)
        ]
        self._new.append((_key(container, name), size, stamp, *words))
        if len(self._new) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the inspections that are not yet written, in one transaction."""
        if self._new:
            self._retried(self._write)
            self._new = []

    def _write(self) -> None:
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO inspections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._new
            )

    def _retried(self, action: Callable[[], T]) -> T:
        """The result of an action on the database; a damaged file is replaced by an empty one first."""
        with _database_errors(self.path):
            try:
                return action()
            except sqlite3.OperationalError:  # full, locked or not writable, but not damaged
                raise
            except sqlite3.DatabaseError:
                self._database.close()
                self.path.unlink(missing_ok=True)
                self._database = _connect(self.path)
                return action()


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database, or an empty one in place of a damaged file."""
    try:
        return _open(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE)
    try:
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS inspections (key BLOB PRIMARY KEY, size INTEGER, stamp INTEGER, "
                "problem TEXT, detail TEXT, content TEXT, perceptual_hash TEXT, width INTEGER, height INTEGER) "
                "WITHOUT ROWID"
            )
    except sqlite3.Error:
        database.close()
        raise
    return database


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(
            f"{path} cannot be used: {error}; free some space, or set IMBALANCE_VLM_CACHE to another folder"
        ) from error


def _key(container: str, name: str) -> bytes:
    return hashlib.sha256(f"{container}\0{name}".encode("utf-8", "surrogatepass")).digest()[:16]
