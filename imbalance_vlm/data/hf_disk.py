"""A Hugging Face dataset that `save_to_disk` has written. Needs the package `datasets`."""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.components.ranges import Natural, Share
from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.dataset import Dataset, Split, rgb
from imbalance_vlm.data.lists import expanded, files_identity
from imbalance_vlm.data.table import SPLIT_WORDS, to_labels, with_test
from imbalance_vlm.errors import InputError, did_you_mean


@dataclass(frozen=True, eq=False)
class HFImages:
    """The image column of a dataset, decoded when asked for.

    Args:
        data: a `datasets.Dataset` with that column alone.
        column: its name.
        rows: which of its rows, in order.
        stamp: identity of the files behind it.
        prefix: what the names of the images begin with in listings.
    """

    data: Any
    column: str
    rows: NDArray[np.int64]
    stamp: str
    prefix: str

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.stamp}\0{self.prefix}\0".encode() + self.rows.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        value = self.data[int(self.rows[index])][self.column]
        if isinstance(value, Mapping):  # an image that the dataset does not decode
            value = Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
        if isinstance(value, bytes):
            value = Image.open(io.BytesIO(value))
        if not isinstance(value, Image.Image):
            raise ValueError(f"column {self.column!r} must hold images, got {type(value).__name__}")
        return rgb(value)

    def name(self, index: int) -> str:
        return f"{self.prefix}{self.rows[index]}"

    def take(self, keep: NDArray[np.int64]) -> HFImages:
        return HFImages(self.data, self.column, self.rows[keep], self.stamp, self.prefix)


def hf_disk(
    *,
    root: Path,
    image_column: str = "image",
    label_column: str = "label",
    class_names: Path | None = None,
    test_fraction: Share = 0.2,
    val_fraction: Share = 0.0,
    split_seed: Natural = 0,
    flips: bool = True,
) -> Dataset:
    """A dataset saved by Hugging Face `datasets`. Nothing is ever written into `root`.

    Args:
        root: the folder that `save_to_disk` wrote: a DatasetDict with train and test, or one Dataset to split.
        image_column: the column of the images.
        label_column: the column of the classes: a ClassLabel, names, or whole numbers.
        class_names: a text file with one name a line, in place of the dataset's own.
        test_fraction: share of each class set aside for testing where there is no test split; a class keeps at least
            one training image.
        val_fraction: likewise for validation.
        split_seed: draws that split; it does not depend on the run's seed, so all seeds share one test set.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.

    Raises:
        InputError: no package `datasets`, no such folder, columns that are not there, labels below 0.
    """
    root = expanded(root)
    parts = _parts(root, image_column, label_column)
    stamp = identity(root=root)
    words = {split: _words(part, label_column, f"{root}, split {split!r}") for split, part in parts.items()}
    joined = [word for column in words.values() for word in column]
    where = f"{root}, column {label_column!r}"
    own = getattr(next(iter(parts.values())).features[label_column], "names", None)
    if own and class_names is None:
        labels, names = np.array(list(map(int, joined)), np.int64), tuple(map(spoken, own))
    else:
        labels, names = to_labels(joined, expanded(class_names) if class_names else None, where)
    splits, start = {}, 0
    for split, part in parts.items():
        images = HFImages(part.select_columns([image_column]), image_column, np.arange(len(part)), stamp, f"{split}/")
        splits[split] = Split(images, labels[start : start + len(part)])
        start += len(part)
    splits = with_test(splits, test_fraction, val_fraction, split_seed, str(root))
    return Dataset(root.resolve().name or "hf_disk", names, splits, flips=flips)


def identity(*, root: Path, class_names: Path | None = None, **_: object) -> str:
    """Names, sizes and times of the files, and what the class names say."""
    root = expanded(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    words = [f"{f.relative_to(root).as_posix()}\0{f.stat().st_size}\0{f.stat().st_mtime_ns}" for f in files]
    named = files_identity([expanded(class_names)] if class_names else [])
    return hashlib.sha256("\n".join([*words, named]).encode()).hexdigest()


hf_disk.identity = identity  # type: ignore[attr-defined]


def _parts(root: Path, image_column: str, label_column: str) -> dict[str, Any]:
    """The `datasets.Dataset` of each split."""
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
    found = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    unknown = [name for name in found if name.lower() not in SPLIT_WORDS]
    if unknown:
        raise InputError(f"the splits of {root} must be train, val and test, got {unknown[0]!r}; rename or drop it")
    parts = {SPLIT_WORDS[name.lower()]: part for name, part in found.items()}
    for name, part in parts.items():
        for column in (image_column, label_column):
            if column not in part.column_names:
                raise InputError(
                    f"split '{name}' of {root} must have a column {column!r}, got {', '.join(part.column_names)}."
                    f"{did_you_mean(column, part.column_names)} Name it with `image_column` or `label_column`"
                )
    return parts


def _words(part: Any, column: str, where: str) -> list[str]:
    """The labels as text, read without touching the images."""
    values = part.select_columns([column])[:][column]
    wrong = [row for row, value in enumerate(values) if value is None or (isinstance(value, int) and value < 0)]
    if wrong:
        raise InputError(
            f"{where}, row {wrong[0]}: a label must be a name or a whole number >= 0, got {values[wrong[0]]!r}; "
            "test sets of competitions are often unlabelled: drop that split"
        )
    return [str(value) for value in values]
