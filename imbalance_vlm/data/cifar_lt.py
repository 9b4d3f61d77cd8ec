"""CIFAR-10-LT and CIFAR-100-LT: the balanced sets, thinned to an exponential tail.

[0] Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019
[1] https://github.com/kaidic/LDAM-DRW (Cao et al., NeurIPS 2019), whose draw later papers share

n_c = int(n_max (1 / IF)^(c / (C - 1))), classes in label order; NumPy's generator with seed 0 shuffles the images of a
class, the first n_c of which stay.

Differs from [1] in: nothing that changes which images are drawn.

root/cifar-10-batches-py/{data_batch_1..5, test_batch, batches.meta}     root/cifar-100-python/{train, test, meta}
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.components.ranges import Natural
from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.lists import expanded
from imbalance_vlm.data.tails import Factor, head_slice, tail_counts
from imbalance_vlm.errors import InputError


@dataclass(frozen=True)
class Batches:
    """The files of one of the two sets."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: str
    labels: str

    def place(self, root: Path) -> Path:
        """The folder of the files: root, or the one in it that the archive unpacks to."""
        root = expanded(root)
        for place in (root, root / self.folder):
            if all((place / file).is_file() for file in (*self.train, *self.test, self.meta)):
                return place
        raise InputError(
            f"`root` must hold {self.folder}/ with {', '.join((*self.train, *self.test, self.meta))} (the python "
            f"version on the CIFAR page of the University of Toronto, which torchvision unpacks too), got {str(root)!r}"
        )

    def identity(self, root: Path) -> str:
        place = self.place(root)
        files = [place / file for file in (*self.train, *self.test, self.meta)]
        words = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        return hashlib.sha256(";".join(words).encode()).hexdigest()


CIFAR10 = Batches(
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    ("test_batch",),
    "batches.meta",
    "label_names",
    "labels",
)
CIFAR100 = Batches("cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels")


def cifar10_lt(
    *, root: Path, imbalance: Factor = 100.0, groups_from: Factor | None = None, draw: Natural = 0
) -> Dataset:
    """CIFAR-10-LT.

    Args:
        root: holds cifar-10-batches-py/, or is it.
        imbalance: largest class over smallest (IF); 1 keeps the set balanced.
        groups_from: the imbalance whose counts make a class many, medium or few; null for `imbalance` itself. Some
            papers keep the groups of 100 at all imbalances.
        draw: seed of the draw; 0 is the one that papers share.
    """
    return _long_tailed("cifar10_lt", CIFAR10, root, imbalance, groups_from, draw)


def cifar100_lt(
    *, root: Path, imbalance: Factor = 100.0, groups_from: Factor | None = None, draw: Natural = 0
) -> Dataset:
    """CIFAR-100-LT.

    Args:
        root: holds cifar-100-python/, or is it.
        imbalance: largest class over smallest (IF); 1 keeps the set balanced.
        groups_from: the imbalance whose counts make a class many, medium or few; null for `imbalance` itself. Some
            papers keep the groups of 100 at all imbalances.
        draw: seed of the draw; 0 is the one that papers share.
    """
    return _long_tailed("cifar100_lt", CIFAR100, root, imbalance, groups_from, draw)


cifar10_lt.identity = lambda *, root, **_: CIFAR10.identity(root)  # type: ignore[attr-defined]
cifar100_lt.identity = lambda *, root, **_: CIFAR100.identity(root)  # type: ignore[attr-defined]


def _long_tailed(
    name: str, batches: Batches, root: Path, imbalance: float, groups_from: float | None, draw: int
) -> Dataset:
    place = batches.place(root)
    meta = _unpickled(place / batches.meta)
    class_names = tuple(spoken(str(word)) for word in meta.get(batches.names, ()))
    if not class_names:
        raise InputError(f"{place / batches.meta} must hold the class names under {batches.names!r}")
    train = _images(place, batches.train, batches.labels, len(class_names))
    test = _images(place, batches.test, batches.labels, len(class_names))
    largest = int(np.bincount(train[1]).max())
    counts = tail_counts("exponential", len(class_names), largest, imbalance)
    # The balanced set keeps its order: a tail that `data.tail` makes of it is then the same draw.
    kept = head_slice(train[1], counts, draw) if imbalance > 1 else np.arange(len(train[1]))
    groups = tail_counts("exponential", len(class_names), largest, groups_from) if groups_from else None
    splits = {
        "train": Split(ArrayImages(train[0][kept], f"{name}/train/"), train[1][kept]),
        "test": Split(ArrayImages(test[0], f"{name}/test/"), test[1]),
    }
    return Dataset(name, class_names, splits, group_counts=groups)


def _images(
    place: Path, files: tuple[str, ...], key: str, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 32, 32, 3) pixels and (N,) labels of these files."""
    pixels, labels = [], []
    for file in files:
        batch = _unpickled(place / file)
        data, found = batch.get("data"), batch.get(key)
        if (
            not isinstance(data, np.ndarray)
            or data.ndim != 2
            or data.shape[1:] != (3072,)
            or data.dtype != np.uint8
            or not isinstance(found, list)
            or len(found) != len(data)
            or not all(isinstance(label, int) and 0 <= label < num_classes for label in found)
        ):
            raise InputError(
                f"{place / file} must hold `data`, (N, 3072) uint8, and `{key}`, N labels below {num_classes}; "
                "unpack the archive anew"
            )
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(found, np.int64))
    return np.ascontiguousarray(np.concatenate(pixels)), np.concatenate(labels)


class _PlainPickle(pickle.Unpickler):
    """Reads arrays, text and numbers; a pickle that names anything else could run code, and is refused."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        # CIFAR was pickled under NumPy 1, which kept these functions in numpy.core.
        short = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if (short, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which data do not need")
        return getattr(importlib.import_module(f"numpy._core.{short}" if short != module else module), name)


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        content = _PlainPickle(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise InputError(f"{file} cannot be read as a batch of CIFAR: {error}; unpack the archive anew") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a mapping, got {type(content).__name__}; unpack the archive anew")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
