"""Your own images, named by a table: CSV, TSV or Parquet with a path and a label in each row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.components.ranges import Natural, Share
from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.dataset import Dataset, Split
from imbalance_vlm.data.folder import draw_splits
from imbalance_vlm.data.lists import Listed, OnError, expanded, files_identity, splits_of, text_of
from imbalance_vlm.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def table(
    *,
    file: Path,
    root: Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str | None = "split",
    class_names: Path | None = None,
    on_error: OnError = "raise",
    test_fraction: Share = 0.2,
    val_fraction: Share = 0.0,
    split_seed: Natural = 0,
    flips: bool = True,
) -> Dataset:
    """A dataset from a table of images. Nothing is ever written beside it.

    Args:
        file: the table: .csv, .tsv, .txt (as .tsv) or .parquet.
        root: what the paths start from; null for the folder of the table.
        path_column: the column of the paths.
        label_column: the column of the classes: names, or whole numbers.
        split_column: the column that says train, val or test. Without one of that name, or where it is null, a test
            part is drawn, class by class.
        class_names: a text file with one name a line: of class 0, 1, ... where the labels are numbers, or
            `label<TAB>name` where they are words.
        on_error: what a missing image does: "raise" stops, "skip" leaves it out and counts it.
        test_fraction: share of each class set aside for testing where the table does not say; a class keeps at least
            one training image.
        val_fraction: likewise for validation.
        split_seed: draws that split; it does not depend on the run's seed, so all seeds share one test set.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.

    Raises:
        InputError: a file or column that is not there, a row without path or label, an image in two rows, a split of
            another name, missing images.
    """
    file = expanded(file)
    base = expanded(root) if root else file.parent
    rows = _read(file, [path_column, label_column, split_column])
    paths = _filled(file, rows, path_column)
    words = _filled(file, rows, label_column)
    _once(file, paths)
    labels, names = to_labels(words, expanded(class_names) if class_names else None, f"{file}, column {label_column!r}")
    if split_column in rows.columns:
        split_of = np.array(_splits(file, _filled(file, rows, split_column)))
    else:
        split_of = np.full(len(paths), "train")
    listed = {}
    for split in dict.fromkeys(("train", *split_of.tolist())):
        chosen = np.flatnonzero(split_of == split)
        listed[split] = Listed(tuple(paths[row] for row in chosen), labels[chosen])
    splits, skipped = splits_of(base, listed, on_error)
    splits = with_test(splits, test_fraction, val_fraction, split_seed, str(file))
    return Dataset(file.stem, names, splits, flips=flips, skipped=skipped)


def with_test(
    splits: dict[str, Split], test_fraction: float, val_fraction: float, seed: int, source: str
) -> dict[str, Split]:
    """The splits, with a test part drawn from "train" where that is all there is.

    Raises:
        InputError: training or test images are missing, and there is nothing to draw them from.
    """
    splits = {name: split for name, split in splits.items() if len(split)}
    if set(splits) == {"train"}:
        splits = draw_splits(splits["train"], test_fraction, val_fraction, seed)
    for required in ("train", "test"):
        if required not in splits:
            raise InputError(
                f"{source} must have images for '{required}', and has them for {', '.join(splits) or 'nothing'}; name "
                "the splits train, val and test, or give training images alone to have a test part drawn"
            )
    return splits


def to_labels(words: Sequence[str], class_names: Path | None, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(N,) labels in [0, C) and (C,) class names from what a column says.

    Whole numbers are labels if a file names the classes, else names themselves; either way they sort as numbers.

    Raises:
        InputError: a class that the file of names does not have.
    """
    numeric = all(word.isascii() and word.isdigit() for word in words)
    present = sorted({str(int(word)) for word in words}, key=int) if numeric else sorted(set(words))
    if class_names is None:
        keys, names = present, tuple(present) if numeric else tuple(map(spoken, present))
    else:
        given = named_classes(class_names)
        unknown = [key for key in present if key not in given]
        if unknown:
            counted = f" (it names 0 to {len(given) - 1})" if numeric else did_you_mean(unknown[0], given)
            raise InputError(
                f"{where}: every class must be named in {class_names}, got {unknown[0]!r}{counted}; "
                "add a line for it, or leave `class_names` out"
            )
        keys, names = list(given), tuple(given.values())
    index = {key: label for label, key in enumerate(keys)}
    return np.array([index[str(int(word)) if numeric else word] for word in words], np.int64), names


def named_classes(file: Path) -> dict[str, str]:
    """Class names by label: `label<TAB>name` a line, or the name alone, its label being the line's number from 0.

    Raises:
        InputError: no such file, an empty line between others, a label that comes twice.
    """
    if not file.is_file():
        raise InputError(f"`class_names` must be a text file with one name a line, got {str(file)!r}: no such file")
    lines = text_of(file).rstrip("\r\n").split("\n")
    names: dict[str, str] = {}
    for number, line in enumerate(lines):
        key, tab, name = line.strip("\r\n").partition("\t")
        if not tab:
            key, name = str(number), key
        if not name.strip() or key in names:
            wrong = f"label {key!r} comes twice" if key in names else "must hold a name"
            raise InputError(f"{file}, line {number + 1}: {wrong}, got {line.strip()!r}")
        names[key] = " ".join(name.split())
    return names


def identity(
    *, file: Path, root: Path | None = None, path_column: str = "path", class_names: Path | None = None, **_: object
) -> str:
    """What the table and the names hold, and sizes and times of the files."""
    file = expanded(file)
    base = expanded(root) if root else file.parent
    digest = hashlib.sha256(files_identity([file, *([expanded(class_names)] if class_names else [])]).encode())
    for path in _filled(file, _read(file, [path_column]), path_column):
        try:
            status = (base / path).stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0missing\n".encode())
    return digest.hexdigest()


table.identity = identity  # type: ignore[attr-defined]


def _read(file: Path, columns: Sequence[str | None]) -> pd.DataFrame:
    """The table with every value as text: a class may be called "NA", "007" or "None"."""
    import pandas as pd

    if not file.is_file():
        raise InputError(f"`file` must be a table (.csv, .tsv or .parquet), got {str(file)!r}: no such file")
    kind = file.suffix.lower()
    try:
        if kind == ".parquet":
            rows = pd.read_parquet(file)
        elif kind in (".csv", ".tsv", ".txt"):
            rows = pd.read_csv(
                file,
                sep="," if kind == ".csv" else "\t",
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
                on_bad_lines="error",
            )
        else:
            raise InputError(f"`file` must end in .csv, .tsv, .txt or .parquet, got {file.name!r}")
    except ImportError as error:
        raise InputError(f"reading {file.name} needs pyarrow: pip install 'imbalance_vlm[parquet]'") from error
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read as a table: {' '.join(str(error).split())}") from error
    for column in columns[:2]:
        if column not in rows.columns:
            found = [str(name) for name in rows.columns]
            hint = did_you_mean(str(column), found)
            raise InputError(
                f"{file} must have a column {column!r}, got {', '.join(found) or 'none'}.{hint} "
                "Name the columns with `path_column`, `label_column` and `split_column`"
            )
    if len(columns) > 2 and columns[2] not in (None, "split", *rows.columns):
        raise InputError(f"{file} must have the `split_column` {columns[2]!r}, got {', '.join(map(str, rows.columns))}")
    if rows.empty:
        raise InputError(f"{file} must have a row for each image, and has none")
    return rows


def _filled(file: Path, rows: pd.DataFrame, column: str | None) -> list[str]:
    """The column as text, without gaps."""
    values = rows[column]
    words = ["" if gap else str(value).strip() for value, gap in zip(values, values.isna(), strict=True)]
    # A column of whole numbers with a gap somewhere comes from Parquet as 3.0.
    words = [word.removesuffix(".0") for word in words] if values.dtype.kind == "f" else words
    if "" in words:
        raise InputError(
            f"{file}, row {words.index('') + 1} (after the header): {column!r} is empty; fill it or drop it"
        )
    return words


def _once(file: Path, paths: Sequence[str]) -> None:
    row_of: dict[str, int] = {}
    for row, path in enumerate(paths, 1):
        if row_of.setdefault(path, row) != row:
            raise InputError(
                f"{file}, row {row} (after the header): an image must stand in a table once, got {path!r}, which is in "
                f"row {row_of[path]} too; drop one of them"
            )


def _splits(file: Path, words: Sequence[str]) -> list[str]:
    wrong = [row for row, word in enumerate(words) if word.lower() not in SPLIT_WORDS]
    if wrong:
        raise InputError(
            f"{file}, row {wrong[0] + 1} (after the header): a split must be train, val or test, got "
            f"{words[wrong[0]]!r}; set `split_column` to null to have a split drawn"
        )
    return [SPLIT_WORDS[word.lower()] for word in words]
