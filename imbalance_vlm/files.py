"""Reading and writing files; a kill, a full disk or a second process never leaves an incomplete file."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imbalance_vlm.errors import InputError


def cache_folder() -> Path:
    """$IMBALANCE_VLM_CACHE, or imbalance_vlm under the user's cache folder."""
    if folder := os.environ.get("IMBALANCE_VLM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "imbalance_vlm"


FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def disk_errors(path: Path, remedy: str = "free some space or choose another folder") -> Iterator[None]:
    """Turn the errors of a full disk and of an unwritable path into an InputError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InputError(f"no space left on the disk while writing {path}; {remedy}") from error
        # A file where a folder should be, or a folder where a file should be.
        in_the_way = isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError))
        if in_the_way or isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise InputError(f"{path} cannot be written: {error.strerror}; {remedy}") from error
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, then move the file into place in one step."""
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


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
    except ValueError as error:
        raise InputError(f"{file} must hold JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


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
