"""Your own images, named by a table: CSV, TSV or Parquet with a path and a label in each row."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.class_names import labels_and_names
from imbalance_vlm.data.dataset import Dataset, FileImages
from imbalance_vlm.data.labels import cell_text
from imbalance_vlm.data.lists import LabelledPaths, file_splits, files_identity, read_existing, real_paths
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing, OnError
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """Images named by a table. Nothing is written beside it.

    Args:
        file: the table: .csv, .tsv, .txt (read as .tsv) or .parquet. In text, the header says which of , ; | and tab
            separates the columns; only in a table separated by tabs are quotes inside of a value ordinary characters.
        root: the folder that the paths are relative to; null for the folder of the table. A path that begins with ~/
            is below the home folder.
        path_column: the column of the paths.
        label_column: the column of the classes: names, or whole numbers.
        split_column: the column that says train, val or test. Without a column of that name, or where it is null, a
            test part is drawn, class by class.
        class_names: a text file with one name per line: of class 0, 1, ... where the labels are numbers, or
            `label<TAB>name` where they are words.
        on_error: what missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and
            the result counts them.
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
        table = _read(file, self.path_column, self.label_column, self.split_column)
        paths = _paths(table, self.path_column)
        labels, names = labels_and_names(
            table.columns[self.label_column], self.class_names, partial(table.where, column=self.label_column)
        )
        column = self.split_column if self.split_column in table.columns else None
        split_of = np.array(_splits(table, column) if column else ["train"] * len(paths))
        first = _first_listings(table, real_paths(self._root, paths), labels, split_of)
        lists = {}
        for split in dict.fromkeys(("train", *split_of.tolist())):
            chosen = np.flatnonzero((split_of == split) & first)
            if len(chosen):
                lists[split] = LabelledPaths(tuple(paths[row] for row in chosen), labels[chosen])
        splits = file_splits(self._root, lists)
        return Listing(
            name=file.stem,
            class_names=names,
            splits=splits,
            flips=self.flips,
            undivided=self.split.needed(splits),
            passed_over={"rows that repeat an image": int((~first).sum())} if not first.all() else {},
        )

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: a file or column that does not exist, a row with more or fewer values than the header has, or
                without path or label, an image in two rows with different labels or splits, a split of another name,
                missing or unreadable images.
        """
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the contents of the table, the names and the images."""
        file = expanded(self.file)
        paths = tuple(_paths(_read(file, self.path_column), self.path_column))
        return files_identity([file, self.class_names]) + FileImages(self._root, paths).fingerprint

    @property
    def _root(self) -> Path:
        return expanded(self.root) if self.root else expanded(self.file).parent


@dataclass(frozen=True)
class _Table:
    """The columns of a table, each (N,), and the number of the line or row that holds each value."""

    file: Path
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int]
    unit: str

    def where(self, row: int, column: str | None = None) -> str:
        """The place of a value, for messages."""
        return f"{self.file}, {self.unit} {self.numbers[row]}{f', column {column!r}' if column else ''}"


def _read(file: Path, path_column: str, label_column: str | None = None, split_column: str | None = None) -> _Table:
    """The columns of a table; those of a text table hold text as it is written.

    Raises:
        InputError: no such file, another format, a row of another length than the header, or a column that it lacks;
            the split column "split" may be absent.
    """
    if not file.is_file():
        raise InputError(f"`file` must be a table (.csv, .tsv or .parquet), got {str(file)!r}: no such file")
    required = [column for column in (path_column, label_column) if column]
    kind = file.suffix.lower()
    try:
        if kind == ".parquet":
            table = _read_parquet(file)
        elif kind in TABLE_SUFFIXES:
            table = _read_text(file, required)
        else:
            raise InputError(f"`file` must end in .csv, .tsv, .txt or .parquet, got {file.name!r}")
    except ImportError as error:
        raise InputError(f"reading {file.name} needs pyarrow: pip install 'imbalance_vlm[parquet]'") from error
    except (ValueError, OSError, NotImplementedError, csv.Error) as error:  # pyarrow's own errors are ValueErrors
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read as a table: {' '.join(str(error).split())}") from error
    for column in required:
        if column not in table.columns:
            raise InputError(
                f"{file} must have a column {column!r}, got {', '.join(table.columns) or 'none'}."
                f"{did_you_mean(column, table.columns)} "
                "Its first line must name the columns; set `path_column`, `label_column` and `split_column` to "
                "their names"
            )
    if split_column not in (None, "split", *table.columns):
        raise InputError(f"{file} must have the `split_column` {split_column!r}, got {', '.join(table.columns)}")
    if not table.numbers:
        raise InputError(f"{file} must have one row per image, and has none")
    return table


def _read_parquet(file: Path) -> _Table:
    content = importlib.import_module("pyarrow.parquet").read_table(file)
    _refuse_repeated_columns(file, content.column_names)
    columns = {name: content.column(name).to_pylist() for name in content.column_names}
    return _Table(file, columns, range(1, content.num_rows + 1), "row")


def _read_text(file: Path, required: Sequence[str]) -> _Table:
    """A text table.

    Raises:
        csv.Error: a quote that is not closed, or that does not end a value.
        UnicodeDecodeError: text that is not UTF-8.
        InputError: a row that has more or fewer values than the header.
    """
    usual = "," if file.suffix.lower() == ".csv" else "\t"
    with file.open(newline="", encoding="utf-8-sig") as stream:
        header = stream.readline()
        separators = [usual, *(separator for separator in ",;\t|" if separator != usual)]
        fitting = (mark for mark in separators if set(required) <= set(_cells(next(_rows([header], mark), []), mark)))
        separator = next(fitting, usual)
        stream.seek(0)
        rows = _rows(stream, separator)
        names = _cells(next(rows, []), separator)
        _refuse_repeated_columns(file, names)
        numbers: list[int] = []
        columns: dict[str, list[str]] = {name: [] for name in names}
        last_line = rows.line_num
        for row in rows:
            line, last_line = last_line + 1, rows.line_num
            if not "".join(row).strip() and len(row) < 2:  # an empty line
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{file}, line {line}: a row must have {len(names)} values, one per column of the header, got "
                    f"{len(row)}: {separator.join(row)[:200]!r}; put a value that holds {separator!r} in double quotes"
                    f"{', or write the table as .csv' if separator == chr(9) else ''}"
                )
            numbers.append(line)
            for name, value in zip(names, _cells(row, separator), strict=True):
                columns[name].append(value)
    return _Table(file, columns, numbers, "line")


def _rows(lines: Any, separator: str) -> Any:
    """A csv reader. Values separated by tabs may hold quotes, which are then ordinary characters."""
    if separator == "\t":
        return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)


def _cells(row: Sequence[str], separator: str) -> list[str]:
    """The values of a row, without spaces around them; in a table with tabs, a quoted value without its quotes."""
    cells = [value.strip() for value in row]
    if separator != "\t":
        return cells
    return [
        cell[1:-1].replace('""', '"')
        if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
        else cell
        for cell in cells
    ]


def _refuse_repeated_columns(file: Path, names: Sequence[str]) -> None:
    repeated = [name for name in names if names.count(name) > 1 and name]
    if repeated:
        raise InputError(f"the columns of {file} must have different names, got {repeated[0]!r} more than once")


def _texts(table: _Table, column: str) -> list[str]:
    """(N,) values of a column as text, without gaps."""
    return [cell_text(value, table.where(row), column) for row, value in enumerate(table.columns[column])]


def _paths(table: _Table, column: str) -> list[str]:
    paths = _texts(table, column)
    return [str(expanded(Path(path))) if path.startswith(("~/", "~\\")) else path for path in paths]


def _first_listings(
    table: _Table, files: Sequence[str], labels: NDArray[np.int64], split_of: NDArray[np.str_]
) -> NDArray[np.bool_]:
    """(N,) whether a row is the first to list its image.

    Args:
        table: the table.
        files: (N,) the image of each row, spelled in one way.
        labels: (N,).
        split_of: (N,).

    Raises:
        InputError: an image with two labels, or in two splits.
    """
    row_of: dict[str, int] = {}
    is_first = np.ones(len(files), np.bool_)
    for row, file in enumerate(files):
        before = row_of.setdefault(file, row)
        if before == row:
            continue
        is_first[row] = False
        if labels[row] != labels[before] or split_of[row] != split_of[before]:
            difference = "label" if labels[row] != labels[before] else "split"
            raise InputError(
                f"{table.where(row)}: an image must have one {difference}, got another one for {file!r} than in "
                f"{table.unit} {table.numbers[before]}; remove one of the two rows"
            )
    return is_first


def _splits(table: _Table, column: str) -> list[str]:
    splits = []
    for row, word in enumerate(_texts(table, column)):
        if word.lower() not in SPLIT_WORDS:
            raise InputError(
                f"{table.where(row)}: a split must be train, val or test, got {word!r}; set `split_column` to null to "
                "have a split drawn"
            )
        splits.append(SPLIT_WORDS[word.lower()])
    return splits
