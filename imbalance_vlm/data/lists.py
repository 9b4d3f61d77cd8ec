"""List files of the benchmarks, and the images that they name, read without opening any image.

A list has one `relative/path label` per line, separated by spaces or tabs; the label stands last, so a path may hold
spaces.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm import files
from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.data.labels import label_number
from imbalance_vlm.data.readability import refusal, unreadable
from imbalance_vlm.data.reader import Listing, OnError
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded

FORMAT = "one `relative/path label` per line"
_FEW = 16
"""If fewer files of a folder are listed, each is checked by itself; otherwise the folder is read once."""


@dataclass(frozen=True)
class LabelledPaths:
    """The lines of a list: paths, (N,), and labels, (N,)."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]


def read_list(file: Path) -> LabelledPaths:
    """Read a list file; empty lines are skipped.

    Raises:
        InputError: a line without path or label, a path that leads out of the folder, or a repeated path; with the
            line's number and text.
    """
    paths: list[str] = []
    labels: list[int] = []
    line_of: dict[str, int] = {}
    number_of: dict[str, int | None] = {}
    for number, line in enumerate(re.split("\r\n|\r|\n", text_of(file)), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        path, label = line.rsplit(maxsplit=1) if len(line.split(maxsplit=1)) > 1 else ("", "")
        path = path.strip()
        if label not in number_of:
            number_of[label] = label_number(label)
        label_of_line = number_of[label]
        if not path or label_of_line is None:
            raise InputError(
                f"{where}: must be {FORMAT}, such as `train/cat/1.jpg 0` with a label >= 0 without leading zeros, "
                f"got {line.strip()[:200]!r}"
            )
        if leads_out(path):
            raise InputError(f"{where}: the path must stay below `root`, got {path!r}")
        if line_of.setdefault(os.path.normpath(path), number) != number:
            raise InputError(
                f"{where}: an image must be listed once, got {path!r}, which is also in line "
                f"{line_of[os.path.normpath(path)]}; remove one of them"
            )
        paths.append(path)
        labels.append(label_of_line)
    if not paths:
        raise InputError(f"{file} must hold {FORMAT}, and is empty")
    return LabelledPaths(tuple(paths), np.array(labels, np.int64))


def text_of(file: Path) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark."""
    try:
        return files.require_file(file, "a list or table").read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} must be a text file in UTF-8: {error}") from error


def leads_out(path: str) -> bool:
    """Whether a path in a list or an archive would leave the folder it belongs to."""
    parts = path.replace("\\", "/").split("/")
    return ".." in parts or path.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":")


def find(name: str | Sequence[str], folders: Iterable[Path], content: str, origin: str) -> Path:
    """The file `name` in the first of `folders` that holds it.

    Args:
        name: its name, or several alternative names.
        folders: where to search, in order.
        content: what the file holds, in words: the form of a line with an example.
        origin: where it can be obtained.

    Raises:
        InputError: it is in none of them; the message says where it was searched for, what it holds and where it comes
            from.
    """
    names = [name] if isinstance(name, str) else list(name)
    places = list(dict.fromkeys(folders))
    for place in places:
        for spelling in names:
            if (place / spelling).is_file():
                return place / spelling
    raise InputError(
        f"{' or '.join(names)} is missing; it was searched for in {', '.join(map(str, places))}. It holds {content}, "
        f"and comes with {origin}. Put it there, or name its folder with `lists`"
    )


def list_folders(root: Path, lists: Path | None, *subfolders: str) -> list[Path]:
    """The folders in which a benchmark's lists are searched for: `lists`, else root and folders in it."""
    return [expanded(lists)] if lists else [root, root / "lists", *(root / name for name in subfolders)]


def check_labels(lists: Mapping[Path, LabelledPaths]) -> int:
    """The number of classes of these lists, whose labels must run from 0 to C - 1 without gaps.

    Raises:
        InputError: labels below the highest one that no line of any list has.
    """
    present = np.unique(np.concatenate([lines.labels for lines in lists.values()]))
    num_classes = int(present[-1]) + 1
    if len(present) < num_classes:
        # A mistyped label can be a billion: the gaps are counted, and only the first few are listed.
        first = [label for label in range(min(num_classes, len(present) + 5)) if label not in set(present.tolist())][:5]
        highest = next(
            f"{file}: {lines.paths[int(lines.labels.argmax())]!r}"
            for file, lines in lists.items()
            if int(lines.labels.max()) == num_classes - 1
        )
        raise InputError(
            f"labels must run from 0 to {num_classes - 1} (the highest, in {highest}) without gaps, but "
            f"{num_classes - len(present)} of them have no line in {', '.join(file.name for file in lists)}: "
            f"{', '.join(map(str, first))}{' ...' if num_classes - len(present) > len(first) else ''}; "
            "are the lists complete, and from one release?"
        )
    return num_classes


def file_splits(root: Path, lists: Mapping[str, LabelledPaths]) -> dict[str, Split]:
    """The splits of these lists, whose files are not checked for existence.

    Raises:
        InputError: `root` is no folder, or an image is listed twice, in one split or in two.
    """
    if not root.is_dir():
        raise InputError(f"`root` must be the folder of the images, got {str(root)!r}: no such folder")
    entries: dict[str, str] = {}
    for split, lines in lists.items():
        for path, label in zip(lines.paths, lines.labels.tolist(), strict=True):
            entry = f"in '{split}' with label {label}"
            before = entries.setdefault(os.path.normpath(path), entry)
            if before is not entry:
                raise InputError(f"an image must be listed once, got {path!r} {before} and {entry}; remove one of them")
    return {name: Split(FileImages(root, lines.paths), lines.labels) for name, lines in lists.items()}


def read_existing(listing: Listing, on_error: OnError) -> Dataset:
    """The dataset of a listing of files, without those that do not exist or cannot be read.

    Raises:
        InputError: all missing and unreadable files, if there are any and `on_error` is "raise", or if no other is
            left.
    """
    splits: dict[str, Split] = {}
    missing: list[str] = []
    reasons: dict[str, str] = {}
    total = 0
    for name, split in listing.splits.items():
        if not isinstance(split.images, FileImages):
            raise TypeError(f"only files can be checked for existence, got {type(split.images).__name__}")
        root, paths = split.images.root, split.images.paths
        exists = existing(root, paths)
        missing += [paths[row] for row in np.flatnonzero(~exists)]
        total += len(paths)
        splits[name] = split.take(np.flatnonzero(exists))
    if len(missing) * 2 > total and (on_error == "raise" or len(missing) == total):
        raise InputError(_missing_images(root, missing, total))
    for name, split in splits.items():
        bad_rows = unreadable(split.images)
        reasons |= {split.images.name(row): reason for row, reason in bad_rows.items()}
        splits[name] = split.take(np.array([row for row in range(len(split)) if row not in bad_rows], np.int64))
    if (missing or reasons) and (on_error == "raise" or not any(map(len, splits.values()))):
        messages = [_missing_images(root, missing, total)] if missing else []
        raise InputError("\n".join([*messages, *([refusal(reasons)] if reasons else [])]))
    return replace(listing, splits=splits).dataset(sorted([*missing, *reasons]))


def existing(root: Path, paths: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) whether each file exists. A folder is listed once, however many of its files are listed."""
    rows_of: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        rows_of.setdefault(path.rpartition("/")[0], []).append(row)
    exists = np.zeros(len(paths), np.bool_)
    for folder, rows in rows_of.items():
        place = root / folder if folder else root
        if paths[rows[0]].startswith("/") and not folder:
            place = Path("/")
        if len(rows) < _FEW:
            exists[rows] = [(root / paths[row]).is_file() for row in rows]
            continue
        try:
            names = set(os.listdir(place))
        except OSError:
            continue
        exists[rows] = [paths[row].rpartition("/")[2] in names for row in rows]
    return exists


def _missing_images(root: Path, missing: Sequence[str], total: int) -> str:
    """The error message for listed images that do not exist."""
    shown = "\n".join(f"  - {path}" for path in missing[:5])
    more = f"\n  ... and {len(missing) - 5} more" if len(missing) > 5 else ""
    first = missing[0]
    if "\\" in first and "/" not in first:
        remedy = "Windows paths: write / for each \\, and for a drive such as C: the folder that it is on this machine"
    elif "://" in first:
        remedy = "Download the images first: a path must be that of a file on this machine"
    elif len(missing) * 2 > total:
        entries = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
        remedy = f"Is `root` the folder that holds {first.split('/')[0]!r}? It holds: {entries}"
    else:
        remedy = "Add them, or set data.on_error to skip to leave them out"
    are = "are" if len(missing) > 1 else "is"
    return f"{len(missing)} of {total} images {are} not in {root}:\n{shown}{more}\n{remedy}"


def real_paths(root: Path, paths: Sequence[str]) -> list[str]:
    """The paths without `.`, `..` and links: equal for one file under two spellings, whether or not it exists."""
    real_folders: dict[str, str] = {}
    real = []
    for path in paths:
        folder, name = os.path.split(os.path.join(root, path))
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        file = os.path.join(real_folders[folder], name)
        real.append(os.path.realpath(file) if name in ("", ".", "..") or os.path.islink(file) else file)
    return real


def files_identity(files: Iterable[Path | None]) -> str:
    """Hash of the content of small files (lists, names); a missing file counts as such, None is left out."""
    digest = hashlib.sha256()
    for file in filter(None, files):
        file = expanded(file)
        digest.update(f"{file.name}\0".encode("utf-8", "surrogatepass"))
        digest.update(file.read_bytes() if file.is_file() else b"missing")
    return digest.hexdigest()


def folders_identity(root: Path, paths: Iterable[str]) -> str:
    """Hash of the folders that hold these files, with the time of their last change.

    Adding, removing or renaming a file changes it. A benchmark's images are not edited in place; if one is, the
    fingerprint of `FileImages`, by which features are cached, changes.
    """
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        try:
            changed = (root / folder).stat().st_mtime_ns
        except OSError:
            changed = -1
        digest.update(f"{folder}\0{changed}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
