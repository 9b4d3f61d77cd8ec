"""Findings that are kept between calls, outside of the user's folder: a second call looks at what has changed."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import astuple
from typing import Any

from imbalance_vlm.files import cache_folder, write_text
from imbalance_vlm.verification.inspecting import Inspected

VERSION = 1
"""Raised whenever `inspect` changes its answers."""
CHUNK = 2048
"""Findings to a file: what a killed call may lose."""
MOST_FILES = 64
"""More are merged into one."""


class Remembered:
    """The findings on the images of one folder or archive, by name, size and time.

    Args:
        home: names the folder or archive.
    """

    def __init__(self, home: str) -> None:
        name = hashlib.sha256(f"{VERSION}\0{home}".encode()).hexdigest()[:32]
        self.folder = cache_folder() / "inspected" / name
        self._known: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}
        self._files = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        for file in self._files:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                self._known |= content
            except (OSError, ValueError, TypeError):  # merged by another process, or damaged
                continue

    def get(self, key: str, size: int, stamp: int) -> Inspected | None:
        found = self._known.get(key)
        if not isinstance(found, list) or found[:2] != [size, stamp]:
            return None
        try:
            return Inspected(*found[2:])
        except TypeError:
            return None

    def add(self, key: str, size: int, stamp: int, inspected: Inspected) -> None:
        self._new[key] = [size, stamp, *astuple(inspected)]
        if len(self._new) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is new; many small files become one."""
        if not self._new:
            return
        file = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"  # read in this order: the last wins
        self._known |= self._new
        merged = len(self._files) >= MOST_FILES
        write_text(file, json.dumps(self._known if merged else self._new))
        for old in self._files if merged else ():
            old.unlink(missing_ok=True)
        if merged:
            self._files = []
        self._files.append(file)
        self._new = {}
