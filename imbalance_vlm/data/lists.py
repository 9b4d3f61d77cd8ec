"""List files of the benchmarks, and images that a list names: read without opening any of them.

A list has one `relative/path label` a line, with spaces or tabs between; the label stands last, so a path may hold
spaces.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.as_listed import listing
from imbalance_vlm.data.dataset import FileImages, Split
from imbalance_vlm.errors import InputError

OnError = Literal["raise", "skip"]
FORMAT = "one `relative/path label` a line"
_FEW = 16
"""In a folder of which fewer files are wanted, each is asked for; of others the names are read once."""


@dataclass(frozen=True)
class Listed:
    """The lines of a list: paths and labels, (N,)."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]


def read_list(file: Path) -> Listed:
    """A list file, line by line; empty lines are passed over.

    Raises:
        InputError: a line without path or label, a path that leads out of the folder, or one that stands twice; with
            its number and text.
    """
    paths: list[str] = []
    labels: list[int] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if not line.strip():
            continue
        path, label = line.rsplit(maxsplit=1) if len(line.split(maxsplit=1)) > 1 else ("", "")
        path = path.strip()
        if not path or not (label.isascii() and label.isdigit()):
            raise InputError(
                f"{file}, line {number}: must be {FORMAT}, such as `train/cat/1.jpg 0` with a label >= 0, "
                f"got {line.strip()[:200]!r}"
            )
        if leads_out(path):
            raise InputError(f"{file}, line {number}: the path must stay below `root`, got {path!r}")
        if line_of.setdefault(path, number) != number:
            raise InputError(
                f"{file}, line {number}: an image must stand in a list once, got {path!r}, which is in line "
                f"{line_of[path]} too; remove one of them"
            )
        paths.append(path)
        labels.append(int(label))
    if not paths:
        raise InputError(f"{file} must hold {FORMAT}, and is empty")
    return Listed(tuple(paths), np.array(labels, np.int64))


def text_of(file: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} must be a text file in UTF-8: {error}") from error


def leads_out(path: str) -> bool:
    """Whether a path of a list or an archive would leave the folder it belongs to."""
    parts = path.replace("\\", "/").split("/")
    return ".." in parts or path.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":")


def find(name: str | Sequence[str], folders: Iterable[Path], what: str, origin: str) -> Path:
    """The file `name` (the first of several spellings) in the first of `folders` that holds it.

    Args:
        name: its name, or the names it goes by.
        folders: where to look, in order.
        what: what is in it, in words: the form of a line with an example.
        origin: where the public gets it.

    Raises:
        InputError: it is in none of them; says where it was looked for, what it looks like and where it comes from.
    """
    names = [name] if isinstance(name, str) else list(name)
    places = list(dict.fromkeys(folders))
    for place in places:
        for spelling in names:
            if (place / spelling).is_file():
                return place / spelling
    raise InputError(
        f"{' or '.join(names)} is missing; it is looked for in {', '.join(map(str, places))}. It holds {what}, "
        f"and comes with {origin}. Put it there, or name its folder with `lists`"
    )


def list_folders(root: Path, lists: Path | None, *subfolders: str) -> list[Path]:
    """Where the lists of a benchmark may lie: in `lists`, else in root or a folder of it."""
    return [expanded(lists)] if lists else [root, root / "lists", *(root / name for name in subfolders)]


def expanded(path: Path) -> Path:
    return Path(path).expanduser()


def check_labels(lists: Mapping[Path, Listed]) -> int:
    """The number of classes: labels run from 0 to C - 1 without holes.

    Raises:
        InputError: labels that no line of any list has, between others that have lines.
    """
    seen = np.unique(np.concatenate([listed.labels for listed in lists.values()]))
    num_classes = int(seen[-1]) + 1
    if len(seen) < num_classes:
        # A mistyped label can be a billion: the holes are counted, only the first few are made.
        first = [label for label in range(min(num_classes, len(seen) + 5)) if label not in set(seen.tolist())][:5]
        highest = next(
            f"{file}: {listed.paths[int(listed.labels.argmax())]!r}"
            for file, listed in lists.items()
            if int(listed.labels.max()) == num_classes - 1
        )
        raise InputError(
            f"labels must run from 0 to {num_classes - 1} (the highest, in {highest}) without holes, but "
            f"{num_classes - len(seen)} of them have no line in {', '.join(file.name for file in lists)}: "
            f"{', '.join(map(str, first))}{' ...' if num_classes - len(seen) > len(first) else ''}; "
            "are the lists complete, and from one release?"
        )
    return num_classes


def there(root: Path, paths: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) which files are there. The names in a folder are read once, however many of its files are asked for."""
    rows_of: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        rows_of.setdefault(path.rpartition("/")[0], []).append(row)
    found = np.zeros(len(paths), np.bool_)
    for folder, rows in rows_of.items():
        place = root / folder if folder else root
        if paths[rows[0]].startswith("/") and not folder:
            place = Path("/")
        if len(rows) < _FEW:
            found[rows] = [(root / paths[row]).is_file() for row in rows]
            continue
        try:
            names = set(os.listdir(place))
        except OSError:
            continue
        found[rows] = [paths[row].rpartition("/")[2] in names for row in rows]
    return found


def splits_of(root: Path, lists: Mapping[str, Listed], on_error: OnError) -> tuple[dict[str, Split], list[str]]:
    """The splits of these lists, and the paths that were left out because there is no such file.

    Raises:
        InputError: `root` is no folder, or files are missing and `on_error` is "raise".
    """
    if not root.is_dir():
        raise InputError(f"`root` must be the folder of the images, got {str(root)!r}: no such folder")
    if listing():
        return {name: Split(FileImages(root, listed.paths), listed.labels) for name, listed in lists.items()}, []
    splits: dict[str, Split] = {}
    missing: list[str] = []
    total = 0
    for name, listed in lists.items():
        found = there(root, listed.paths)
        missing += [listed.paths[row] for row in np.flatnonzero(~found)]
        total += len(found)
        kept = np.flatnonzero(found)
        splits[name] = Split(FileImages(root, tuple(listed.paths[row] for row in kept)), listed.labels[kept])
    missing = list(dict.fromkeys(missing))
    if missing and (on_error == "raise" or len(missing) == total):
        raise InputError(missing_images(root, missing, total))
    return splits, sorted(missing)


def missing_images(root: Path, missing: Sequence[str], total: int) -> str:
    """What to say of images that a list names and the disk does not have."""
    shown = "\n".join(f"  - {path}" for path in missing[:5])
    more = f"\n  ... and {len(missing) - 5} more" if len(missing) > 5 else ""
    if len(missing) * 2 > total:
        first = missing[0].split("/")[0]
        held = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
        remedy = f"Is `root` the folder that holds {first!r}? It holds: {held}"
    else:
        remedy = "Add them, or set data.on_error to skip to leave them out"
    are = "are" if len(missing) > 1 else "is"
    return f"{len(missing)} of {total} images {are} not in {root}:\n{shown}{more}\n{remedy}"


def files_identity(files: Iterable[Path]) -> str:
    """What these small files (lists, names) hold; a file that is not there counts as such."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode())
        digest.update(file.read_bytes() if file.is_file() else b"missing")
    return digest.hexdigest()


def folders_identity(root: Path, paths: Iterable[str]) -> str:
    """The folders that hold these files, with the time of their last change.

    A file added, removed or renamed changes it. A benchmark's images are not edited in place; if one is, the
    fingerprint of `FileImages`, which the feature cache goes by, notices.
    """
    digest = hashlib.sha256(str(root.resolve()).encode())
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        try:
            changed = (root / folder).stat().st_mtime_ns
        except OSError:
            changed = -1
        digest.update(f"{folder}\0{changed}\n".encode())
    return digest.hexdigest()
