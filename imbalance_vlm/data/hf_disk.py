"""A Hugging Face dataset written by `save_to_disk`. Needs the package `datasets`."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.data.class_names import labels_and_names, spoken
from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.data.labels import label_words
from imbalance_vlm.data.lists import files_identity
from imbalance_vlm.data.pixels import read_rgb, to_rgb
from imbalance_vlm.data.readability import read_decodable
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing, OnError
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded


@dataclass(frozen=True, eq=False)
class HFImages:
    """The image column of a dataset, decoded on access.

    Args:
        data: a `datasets.Dataset` with only this column.
        column: its name.
        rows: (N,) which of its rows, in order.
        root: the folder of the files that hold it.
        prefix: the beginning of the images' names in listings.
    """

    data: Any
    column: str
    rows: NDArray[np.int64]
    root: Path
    prefix: str

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{_files_hash(self.root)}\0{self.prefix}\0".encode() + self.rows.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index)

    def read(self, index: int, reduced: bool = False) -> Image.Image:
        """One image; see `read_rgb`."""
        value = self.data[int(self.rows[index])][self.column]
        if isinstance(value, Mapping):  # an image that the dataset does not decode
            value = value.get("bytes") or Path(value["path"])
        if isinstance(value, (bytes, Path)):
            return read_rgb(value, reduced)
        return to_rgb(value)

    def name(self, index: int) -> str:
        return f"{self.prefix}{self.rows[index]}"

    def take(self, keep: NDArray[np.int64]) -> HFImages:
        return HFImages(self.data, self.column, self.rows[keep], self.root, self.prefix)


@dataclass(frozen=True, kw_only=True)
class HFDiskReader:
    """A dataset saved by Hugging Face `datasets`. Nothing is written into `root`.

    Args:
        root: the folder that `save_to_disk` wrote: a DatasetDict with train and test, or a single Dataset.
        image_column: the column of the images.
        label_column: the column of the classes: a ClassLabel, names, or whole numbers.
        class_names: a text file with one name per line, instead of the dataset's own names.
        on_error: what unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and the result
            counts them.
        split: the split that is drawn of a single Dataset.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.
    """

    root: Path
    image_column: str = "image"
    label_column: str = "label"
    class_names: Path | None = None
    on_error: OnError = "raise"
    split: DrawnSplit = DEFAULT_SPLIT
    flips: bool = True

    @classmethod
    def settings_for(cls, path: Path) -> dict[str, Any] | None:
        """A folder that `save_to_disk` wrote."""
        marks = ("dataset_dict.json", "dataset_info.json", "state.json")
        return {"root": str(path)} if any((path / name).is_file() for name in marks) else None

    def list(self) -> Listing:
        root = expanded(self.root)
        parts = _parts(root, self.image_column, self.label_column)
        labels, names = self._labels(parts)
        splits, start = {}, 0
        for split, part in parts.items():
            column = part.select_columns([self.image_column])
            images = HFImages(column, self.image_column, np.arange(len(part)), root, f"{split}/")
            splits[split] = Split(images, labels[start : start + len(part)])
            start += len(part)
        return Listing(
            name=root.resolve().name or "hf_disk",
            class_names=names,
            splits=splits,
            flips=self.flips,
            undivided=self.split.needed(splits),
        )

    def _labels(self, parts: Mapping[str, Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(N,) labels of all parts in turn, and (C,) class names."""
        root, column = expanded(self.root), self.label_column
        # The labels are read without touching the images.
        values = {split: part.select_columns([column])[:][column] for split, part in parts.items()}
        places = [(split, row) for split, part in values.items() for row in range(len(part))]

        def where(row: int) -> str:
            split, row_of_split = places[row]
            return f"{root}, split {split!r}, row {row_of_split}, column {column!r}"

        listed = [value for part in values.values() for value in part]
        class_label = getattr(next(iter(parts.values())).features[column], "names", None)
        if class_label and self.class_names is None:
            words, _ = label_words(listed, where)
            return np.array(list(map(int, words)), np.int64), tuple(map(spoken, class_label))
        return labels_and_names(listed, self.class_names, where)

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: no package `datasets`, no such folder, columns that do not exist, values that are no labels,
                unreadable images.
        """
        return read_decodable(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the names and contents of the files and of the class names."""
        return _files_hash(expanded(self.root)) + files_identity([self.class_names])


def _files_hash(root: Path) -> str:
    """Hash of the names and contents of all files in a folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return FileImages(root, tuple(file.relative_to(root).as_posix() for file in files)).fingerprint


def _parts(root: Path, image_column: str, label_column: str) -> dict[str, Any]:
    """The `datasets.Dataset` of each split that has rows."""
    if not root.is_dir():
        raise InputError(f"`root` must be a folder that `save_to_disk` wrote, got {str(root)!r}: no such folder")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError("reading a Hugging Face dataset needs its package: pip install datasets") from error
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # arrow, JSON and operating system errors, which all mean the same here
        raise InputError(
            f"`root` {root} must be a folder that `save_to_disk` of Hugging Face `datasets` wrote: {error}"
        ) from error
    by_name = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    unknown = [name for name in by_name if name.lower() not in SPLIT_WORDS]
    if unknown:
        raise InputError(f"the splits of {root} must be train, val and test, got {unknown[0]!r}; rename or drop it")
    parts = {SPLIT_WORDS[name.lower()]: part for name, part in by_name.items() if len(part)}
    if not parts:
        raise InputError(f"`root` {root} must hold rows with images, and has none")
    for name, part in parts.items():
        for column in (image_column, label_column):
            if column not in part.column_names:
                raise InputError(
                    f"split '{name}' of {root} must have a column {column!r}, got {', '.join(part.column_names)}."
                    f"{did_you_mean(column, part.column_names)} Name it with `image_column` or `label_column`"
                )
    return parts
