"""Reading and writing files; a kill, a full disk or a second process never leaves an incomplete file."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import note
from imbalance_vlm.values import fits, mistake, path_problem, written

RUN_NAME = re.compile(r"seed\d+-[0-9a-f]{16}|\.seed\d+-[0-9a-f]{16}\.lock")
"""The names of a run's folder and of the lock beside it, by which folders of runs are told from folders of images."""
STUDY_FILES = frozenset({"study.json", "table.csv", "table.md"})
"""What a study writes into its folder, perhaps with a plot."""


def expanded(path: str | Path, argument: str = "the path") -> Path:
    """The path with `~` replaced by the home folder.

    Args:
        path: as the user wrote it.
        argument: what it is, for the error.

    Raises:
        InputError: a path that no file or folder can have.
    """
    if problem := path_problem(str(path)):
        raise InputError(f"{argument} must name a file or folder that can exist, got {written(str(path))}, {problem}")
    return Path(path).expanduser()


def require_file(file: Path, argument: str) -> Path:
    """The file, if it is a regular one: reading a pipe, a socket or a device may never end.

    Raises:
        InputError: it is something else, or there is nothing.
    """
    if not file.is_file():
        kind = "a folder; name a file in it" if file.is_dir() else "a pipe, a socket or a device"
        raise InputError(f"{argument} must be a file, got {str(file)!r}: {kind if file.exists() else 'no such file'}")
    return file


def cache_folder() -> Path:
    """$IMBALANCE_VLM_CACHE, or imbalance_vlm under the user's cache folder."""
    if folder := os.environ.get("IMBALANCE_VLM_CACHE"):
        return expanded(folder, "$IMBALANCE_VLM_CACHE")
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "$HOME") / "imbalance_vlm"


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
        InputError: the disk is full, or the path cannot be written, or is that of a device or a pipe.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} must be the path of a file, and is a device, a pipe or a socket")
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
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def read_json(file: Path, shape: Any = dict[str, Any], remedy: str = "") -> Any:
    """The content of a JSON file; {} if the file does not exist.

    Args:
        file: its path.
        shape: what it must hold; see `parse_json`.
        remedy: the end of the error.

    Raises:
        InputError: a file that cannot be read, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return parse_json(content, file, shape, remedy)


def parse_json(text: str | bytes, source: object, shape: Any = dict[str, Any], remedy: str = "") -> Any:
    """JSON from anywhere: damaged, misshapen and bottomless content is refused with one message.

    Args:
        text: the JSON.
        source: where it comes from, for the error.
        shape: the type of the content, such as `list[str]`; or a mapping of the keys that it must have, each with its
            shape (a key whose type includes None may be missing, and there may be others); or a list of one shape, for
            a list of such content.
        remedy: the end of the error.

    Raises:
        InputError: something else, a key written twice, NaN or infinity.

    >>> parse_json('{"names": ["fox"], "size": 2}', "file.json", {"names": list[str], "more": int | None})
    {'names': ['fox'], 'size': 2}
    """
    remedy = f"; {remedy}" if remedy else ""
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{source} must hold JSON: {reason}{remedy}") from error
    if problem := _misshapen(shape, content):
        raise InputError(f"{source} {problem}{remedy}")
    return content


def _misshapen(shape: Any, content: Any) -> str | None:
    """What is wrong with the content of a JSON file, or None."""
    if isinstance(shape, list) and isinstance(content, list):
        problems = ((number, _misshapen(shape[0], item)) for number, item in enumerate(content))
        return next((f"has a wrong entry {number}: it {problem}" for number, problem in problems if problem), None)
    if isinstance(shape, list):
        return f"must be a list, got {written(content)}"
    if not isinstance(shape, Mapping):
        return mistake(shape, content)
    if not isinstance(content, dict):
        return f"must be a mapping with {', '.join(shape)}, got {written(content)}"
    for key, part in shape.items():
        if key not in content and (isinstance(part, Mapping) or not fits(part, None)):
            return f"must hold {', '.join(shape)}, and has no {key!r}"
        if problem := _misshapen(part, content.get(key)):
            return f"has a wrong {key!r}: it {problem}"
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is written twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def write_checked_json(file: Path, content: Any) -> None:
    """Write JSON with a checksum, for `read_checked_json`."""
    text = json.dumps(plain(content), allow_nan=False)
    write_text(file, f"{zlib.crc32(text.encode()):08x}\n{text}\n")


def read_checked_json(file: Path) -> Any:
    """What `write_checked_json` wrote; None if the file does not exist, cannot be read or is damaged."""
    try:
        checksum, _, text = file.read_text(encoding="utf-8").removesuffix("\n").partition("\n")
        if checksum == f"{zlib.crc32(text.encode()):08x}":
            return json.loads(text)
        note(f"{file} is damaged; it is made again")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        note(f"{file} cannot be read ({error}); it is made again")
    return None


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """What this package wrote into the header of a safetensors file; {} for files that it did not write.

    Raises:
        InputError: a file that is damaged, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("imbalance_vlm", "{}")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    entries: dict[str, Any] = parse_json(header, f"the header of {path}")
    return entries


def plain(value: Any) -> Any:
    """A value for JSON: NumPy's values as numbers and lists, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
