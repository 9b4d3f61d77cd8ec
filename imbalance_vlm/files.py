"""Reading and writing files; a kill, a full disk or a second process never leaves an incomplete file."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from imbalance_vlm.errors import InputError

RUN_NAME = re.compile(r"seed\d+-[0-9a-f]{16}|\.seed\d+-[0-9a-f]{16}\.lock")
"""The names of a run's folder and of the lock beside it, by which folders of runs are told from folders of images."""
STUDY_FILES = frozenset({"study.json", "table.csv", "table.md"})
"""What a study writes into its folder, perhaps with a plot."""


def expanded(path: str | Path) -> Path:
    """A user's path with `~` replaced by the home folder.

    Raises:
        InputError: an unknown user's home folder, or a path that no file can have.
    """
    try:
        result = Path(path).expanduser()
        os.lstat(result)
    except RuntimeError as error:
        raise InputError(f"the path {str(path)!r} names the home folder of a user who does not exist") from error
    except ValueError as error:
        raise InputError(f"the path {str(path)!r} must not hold a null character") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = f"{str(path)[:60]}...{str(path)[-20:]}"
            raise InputError(f"the path {shown!r} is too long for the file system: {len(str(path))} letters") from error
    return result


def cache_folder() -> Path:
    """$IMBALANCE_VLM_CACHE, or imbalance_vlm under the user's cache folder."""
    if folder := os.environ.get("IMBALANCE_VLM_CACHE"):
        return expanded(folder)
    return expanded(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbalance_vlm"


FULL = {errno.ENOSPC, errno.EDQUOT}
IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
"""A file where a folder should be, a folder where a file should be, or a link where none may be."""
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_errors(path: Path, remedy: str = "free some space or choose another folder") -> Iterator[None]:
    """Turn the errors of a full disk and of an unwritable path into an InputError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InputError(f"no space left on the disk while writing {path}; {remedy}") from error
        if error.errno in IN_THE_WAY | UNWRITABLE or _is_about(error, path):
            raise InputError(f"{path} cannot be written: {error.strerror}; {remedy}") from error
        raise


@contextmanager
def locked(path: Path, remedy: str = "remove it", timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a file; another process that wants it waits.

    Args:
        path: the lock's file.
        remedy: for the message of the error.
        timeout: seconds to wait; -1 for as long as it takes.

    Raises:
        InputError: the lock cannot be used: another user's, or a folder or a link of its name.
        filelock.Timeout: another process has it.
    """
    lock = FileLock(str(path), timeout=timeout)
    with disk_errors(path, remedy):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_about(error: OSError, path: Path) -> bool:
    """Whether an error concerns a path, a folder above or a file beside it; not a file that is read meanwhile."""
    if not isinstance(error.filename, str):
        return False
    file = Path(error.filename)
    return file in (path, *path.parents) or path in file.parents or file.parent == path.parent


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then move the file into place in one step.

    Raises:
        InputError: the disk is full, or the path cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # as the umask has it; some libraries choose another one
            write(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(mode & 0o777)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, *, recursive: bool = True) -> None:
    """Remove what killed processes left of files in a folder; call it where no other process can be writing there."""
    for pattern in (f".*.{'?' * 8}.tmp*", ".tmp??????"):  # of `write_atomically`, and of safetensors
        for path in folder.rglob(pattern) if recursive else folder.glob(pattern):
            path.unlink(missing_ok=True)


ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
"""How text is written: in UTF-8, where the bytes of a file name that is not UTF-8 become \\udcXX, as in JSON."""


def printable(name: str) -> str:
    """The name of a file or folder as text, whatever its bytes.

    >>> printable("caf\\udce9")
    'caf\\\\udce9'
    """
    return name.encode(**ENCODING).decode()


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically; see `ENCODING`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, **ENCODING))


def write_json(path: Path, content: Any) -> None:
    """Write JSON; NaN and infinity become null, because they are not valid JSON."""
    write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file does not exist.

    Raises:
        InputError: a file that does not hold a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} must hold JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def write_checked_json(file: Path, content: Any) -> None:
    """Write JSON with a checksum, for `read_checked_json`."""
    text = json.dumps(_plain(content), allow_nan=False)
    write_text(file, f"{zlib.crc32(text.encode()):08x}\n{text}\n")


def read_checked_json(file: Path) -> Any:
    """What `write_checked_json` wrote; None if the file does not exist, cannot be read or is damaged."""
    try:
        checksum, _, text = file.read_text(encoding="utf-8").removesuffix("\n").partition("\n")
        return json.loads(text) if checksum == f"{zlib.crc32(text.encode()):08x}" else None
    except (OSError, ValueError):
        return None


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """What this package wrote into the header of a safetensors file; {} for files that it did not write.

    Raises:
        InputError: a file that is damaged, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            entries: dict[str, Any] = json.loads((file.metadata() or {}).get("imbalance_vlm", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    return entries


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
