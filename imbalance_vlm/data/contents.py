"""Hashes of files, and whether they are images that can be read.

Results are cached by the path and state of a file, so that 100,000 files that have not changed take only a call of
`stat` each. A file that could not be read, for example for lack of permission, is tried again every time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import PIL

from imbalance_vlm.data.pixels import PIXELS_VERSION, read_rgb
from imbalance_vlm.data.state_table import CHUNK, StateTable, file_state, is_settled
from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import bar


@dataclass(frozen=True)
class Content:
    """The result of reading a file.

    Args:
        digest: SHA-256 of its bytes; for a file that cannot be read, the reason.
        fault: why the file is not an image that can be read; "" for one that is, None where this was not checked.
        lasting: whether the result follows from the file's bytes, so that it can be cached.
    """

    digest: str
    fault: str | None
    lasting: bool = True


def content_hashes(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file's bytes; "unreadable: " and the type of the error for a file that cannot be read."""
    return [content.digest for content in _contents(files, "read files", check=False)]


def image_faults(files: Sequence[Path]) -> list[str]:
    """Why each file is not an image that can be decoded completely; "" for those that are.

    JPEG files are decoded at an eighth of their size, which still reads all their data and detects truncated files.
    """
    return [content.fault or "" for content in _contents(files, "check images", check=True)]


def _contents(files: Sequence[Path], doing: str, check: bool) -> list[Content]:
    paths = [os.path.abspath(file) for file in files]
    contents = _known(paths, check)
    new = [path for path in dict.fromkeys(paths) if path not in contents]
    if new:
        with (
            warnings.catch_warnings(),  # outside of the pool: the filters belong to the process, not to a thread
            ThreadPoolExecutor(os.cpu_count()) as pool,
            bar(len(new), doing, "img" if check else "file") as progress,
        ):
            warnings.simplefilter("ignore")
            for start in range(0, len(new), CHUNK):
                part = new[start : start + CHUNK]
                results = []
                for result in pool.map(lambda path: _read(path, check), part):
                    results.append(result)
                    progress.update()
                _remember(part, results)
                contents |= {path: content for path, (content, _) in zip(part, results, strict=True)}
    return [contents[path] for path in paths]


def _known(paths: Sequence[str], check: bool) -> dict[str, Content]:
    """The contents of the files that are still in the state in which they were read."""
    states = {}
    for path in paths:
        with suppress(OSError, ValueError):  # tried again, and reported, when it is read
            states[path] = file_state(os.stat(path))
    rows: dict[str, tuple[str, str | None]] = {}
    with suppress(InputError), _table() as table:  # without a cache, everything is read
        rows = table.get_all(states)
    return {path: Content(*row) for path, row in rows.items() if not (check and row[1] is None)}


def _remember(paths: Sequence[str], results: Sequence[tuple[Content, os.stat_result | None]]) -> None:
    with suppress(InputError), _table() as table:
        for path, (content, status) in zip(paths, results, strict=True):
            if status is not None and content.lasting and is_settled(status):
                table.add(path, file_state(status), (content.digest, content.fault))


def _table() -> StateTable:
    # Another Pillow may read what this one cannot.
    return StateTable(f"contents-{PIXELS_VERSION}-pillow-{PIL.__version__}", ["digest", "fault"])


def _read(file: str, check: bool) -> tuple[Content, os.stat_result | None]:
    """The content of a file, and its status just before it was read."""
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block for ever
            return Content("not a regular file", "not a regular file", lasting=False), None
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if not check:
                return Content(digest, None), status
            stream.seek(0)
            try:
                read_rgb(stream, reduced=True)
            except Exception as error:  # decoders raise a dozen types, all of which mean the same here
                # The operating system's errors have a number, the decoders' have none.
                passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
                return Content(digest, _text(error), lasting=not passing), status
            return Content(digest, ""), status
    except (OSError, ValueError) as error:  # no such file, no permission, a name that cannot be one
        return Content(f"unreadable: {type(error).__name__}", _text(error), lasting=False), None


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
