"""Your own images, named by a table: CSV, TSV or Parquet with a path and a label in each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_vlm.data.class_names import labels_and_names
from imbalance_vlm.data.dataset import Dataset, FileImages
from imbalance_vlm.data.lists import LabelledPaths, OnError, file_splits, files_identity, read_existing
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """Images named by a table. Nothing is written beside it.

    Args:
        file: the table: .csv, .tsv, .txt (read as .tsv) or .parquet.
        root: the folder that the paths are relative to; null for the folder of the table.
        path_column: the column of the paths.
        label_column: the column of the classes: names, or whole numbers.
        split_column: the column that says train, val or test. Without a column of that name, or where it is null, a
            test part is drawn, class by class.
        class_names: a text file with one name per line: of class 0, 1, ... where the labels are numbers, or
            `label<TAB>name` where they are words.
        on_error: what a missing image does: "raise" stops, "skip" leaves it out and the result counts it.
        split: the split that is drawn where the table names none.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.
    """

    file: Path
    root: Path | None = None
    path_column: str = "path"
    label_column: str = "label"
    split_column: str | None = "split"
    class_names: Path | None = None
    on_error: OnError = "raise"
    split: DrawnSplit = DEFAULT_SPLIT
    flips: bool = True

    @classmethod
    def settings_for(cls, path: Path) -> dict[str, Any] | None:
        """A file with the suffix of a table."""
        return {"file": str(path)} if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES else None

    def list(self) -> Listing:
        file = expanded(self.file)
        rows = _read(file, self.path_column, self.label_column, self.split_column)
        paths = _filled(file, rows, self.path_column)
        words = _filled(file, rows, self.label_column)
        _refuse_repeated(file, paths)
        labels, names = labels_and_names(words, self.class_names, f"{file}, column {self.label_column!r}")
        if self.split_column in rows.columns:
            split_of = np.array(_splits(file, _filled(file, rows, self.split_column)))
        else:
            split_of = np.full(len(paths), "train")
        lists = {}
        for split in dict.fromkeys(("train", *split_of.tolist())):
            chosen = np.flatnonzero(split_of == split)
            if len(chosen):
                lists[split] = LabelledPaths(tuple(paths[row] for row in chosen), labels[chosen])
        splits = file_splits(self._root, lists)
        return Listing(
            name=file.stem, class_names=names, splits=splits, flips=self.flips, undivided=self.split.needed(splits)
        )

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: a file or column that does not exist, a row without path or label, an image in two rows, a split
                of another name, missing images.
        """
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the contents of the table, the names and the images."""
        file = expanded(self.file)
        paths = tuple(_filled(file, _read(file, self.path_column), self.path_column))
        return files_identity([file, self.class_names]) + FileImages(self._root, paths).fingerprint

    @property
    def _root(self) -> Path:
        return expanded(self.root) if self.root else expanded(self.file).parent


def _read(
    file: Path, path_column: str, label_column: str | None = None, split_column: str | None = None
) -> pd.DataFrame:
    """The table with every value as text: a class may be called "NA", "007" or "None".

    Raises:
        InputError: no such file, another format, or a column that it lacks; the split column "split" may be absent.
    """
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
    columns = [str(name) for name in rows.columns]
    for column in filter(None, (path_column, label_column)):
        if column not in columns:
            raise InputError(
                f"{file} must have a column {column!r}, got {', '.join(columns) or 'none'}."
                f"{did_you_mean(column, columns)} "
                "Name the columns with `path_column`, `label_column` and `split_column`"
            )
    if split_column not in (None, "split", *columns):
        raise InputError(f"{file} must have the `split_column` {split_column!r}, got {', '.join(columns)}")
    if rows.empty:
        raise InputError(f"{file} must have one row per image, and has none")
    return rows


def _filled(file: Path, rows: pd.DataFrame, column: str | None) -> list[str]:
    """The column as text, without gaps."""
    values = rows[column]
    words = ["" if gap else str(value).strip() for value, gap in zip(values, values.isna(), strict=True)]
    # Parquet gives whole numbers as 3.0 in a column with a gap.
    words = [word.removesuffix(".0") for word in words] if values.dtype.kind == "f" else words
    if "" in words:
        raise InputError(
            f"{file}, row {words.index('') + 1} (after the header): {column!r} is empty; fill it or drop it"
        )
    return words


def _refuse_repeated(file: Path, paths: Sequence[str]) -> None:
    row_of: dict[str, int] = {}
    for row, path in enumerate(paths, 1):
        if row_of.setdefault(path, row) != row:
            raise InputError(
                f"{file}, row {row} (after the header): an image must be in a table once, got {path!r}, which is also "
                f"in row {row_of[path]}; drop one of them"
            )


def _splits(file: Path, words: Sequence[str]) -> list[str]:
    wrong = [row for row, word in enumerate(words) if word.lower() not in SPLIT_WORDS]
    if wrong:
        raise InputError(
            f"{file}, row {wrong[0] + 1} (after the header): a split must be train, val or test, got "
            f"{words[wrong[0]]!r}; set `split_column` to null to have a split drawn"
        )
    return [SPLIT_WORDS[word.lower()] for word in words]
