"""A cache of values computed from files; a value is valid as long as its file is in the same state."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, disk_errors

CHUNK = 2048
"""Rows written at a time: the most that a killed call may lose."""
AT_ONCE = 500
"""Rows read at a time: SQLite may accept no more than 999 keys."""
PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""
YOUNG = 2.0
"""Seconds for which a changed file may change again without a new time: file systems count in steps of up to 2 s."""

T = TypeVar("T")


def file_state(status: os.stat_result) -> str:
    """Size, times and inode of a file, which change with its content. The time of the status (ctime) cannot be set."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def is_settled(status: os.stat_result) -> bool:
    """Whether the file has not changed in the last seconds, so that its state identifies its content."""
    return time.time() - status.st_ctime > YOUNG


class StateTable:
    """A table in an SQLite file of the cache folder, which several processes may use at once.

    A damaged file is replaced by an empty one.

    Args:
        name: of the file, with a version that is raised whenever its rows are made differently.
        columns: their names.

    Raises:
        InputError: the file cannot be used.
    """

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self.path = cache_folder() / f"{name}.sqlite"
        self.columns = tuple(columns)
        self._new: list[tuple[object, ...]] = []
        if not self.path.is_file():
            with disk_errors(self.path, _REMEDY):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        with _database_errors(self.path):
            self._database = self._connect()

    def __enter__(self) -> StateTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._database.close()

    def get(self, key: str, state: str) -> tuple[Any, ...] | None:
        """The row of a key, or None where there is none of its present state."""
        return self.get_all({key: state}).get(key)

    def get_all(self, states: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
        """The rows of these keys that are of their present state, by key."""
        rows: dict[str, tuple[Any, ...]] = {}
        keys = list(states)
        for start in range(0, len(keys), AT_ONCE):
            key_of = {_digest(key): key for key in keys[start : start + AT_ONCE]}
            marks = ", ".join("?" * len(key_of))
            query = f"SELECT key, state, {', '.join(self.columns)} FROM facts WHERE key IN ({marks})"  # noqa: S608
            action = partial(self._read, query, list(key_of))
            for digest, state, *values in self._retried(action):
                if state == states[key_of[digest]]:
                    rows[key_of[digest]] = tuple(values)
        return rows

    def add(self, key: str, state: str, values: Sequence[object]) -> None:
        """Keep a row; an older one of the same key is replaced."""
        words = [value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in values]
        self._new.append((_digest(key), state, *words))
        if len(self._new) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not yet written, in one transaction."""
        if self._new:
            rows, self._new = self._new, []
            self._retried(lambda: self._write(rows))

    def _read(self, query: str, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        return self._database.execute(query, keys).fetchall()

    def _write(self, rows: Sequence[tuple[object, ...]]) -> None:
        places = ", ".join("?" * (2 + len(self.columns)))
        with self._database:
            self._database.executemany(f"INSERT OR REPLACE INTO facts VALUES ({places})", rows)  # noqa: S608

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
                self._database = self._connect()
                return action()

    def _connect(self) -> sqlite3.Connection:
        """Open the database, or an empty one in place of a damaged file."""
        try:
            return self._open()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=PATIENCE)
        try:
            with database:
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS facts (key BLOB PRIMARY KEY, state TEXT, {', '.join(self.columns)}) "
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
        raise InputError(f"{path} cannot be used: {error}; {_REMEDY}") from error
    except OSError as error:  # a damaged file that cannot be removed
        raise InputError(f"{path} is damaged and cannot be replaced: {error.strerror}; {_REMEDY}") from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:16]


_REMEDY = "free some space, or set IMBALANCE_VLM_CACHE to another folder"
