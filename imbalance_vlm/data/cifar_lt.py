"""CIFAR-10-LT and CIFAR-100-LT: the balanced datasets, thinned to an exponential tail.

[0] Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019
[1] https://github.com/kaidic/LDAM-DRW (Cao et al., NeurIPS 2019), whose draw later papers share

n_c = int(n_max (1 / IF)^(c / (C - 1))), classes in label order; NumPy's generator with seed 0 shuffles the images of
each class, of which the first n_c are kept.

Differs from [1] in: nothing that changes which images are drawn.

root/cifar-10-batches-py/{data_batch_1..5, test_batch, batches.meta}     root/cifar-100-python/{train, test, meta}
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.components.ranges import Seed
from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.contents import content_hashes
from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.reader import Listing
from imbalance_vlm.data.tails import Factor, subsample_by_counts, tail_counts
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded
from imbalance_vlm.values import fits


@dataclass(frozen=True)
class Batches:
    """The files of one of the two datasets, and the keys of their content."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: str
    labels: str

    @property
    def files(self) -> tuple[str, ...]:
        return *self.train, *self.test, self.meta

    def place(self, root: Path) -> Path:
        """The folder of the files: root, or the folder in it that the archive unpacks to."""
        for place in (root, root / self.folder):
            if all((place / file).is_file() for file in self.files):
                return place
        raise InputError(
            f"`root` must hold {self.folder}/ with {', '.join(self.files)} (the python version on the CIFAR page of "
            f"the University of Toronto, which torchvision unpacks too), got {str(root)!r}"
        )


CIFAR = {
    "cifar10_lt": Batches(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "label_names",
        "labels",
    ),
    "cifar100_lt": Batches("cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
}


@dataclass(frozen=True)
class CifarLTReader:
    """CIFAR-10-LT or CIFAR-100-LT.

    Args:
        name: a key of `CIFAR`.
        root: the folder that holds cifar-10-batches-py/ or cifar-100-python/, or that folder itself.
        imbalance: largest class over smallest (IF); 1 keeps the dataset balanced.
        groups_from: the imbalance by whose counts classes are many, medium or few; null for `imbalance` itself. Some
            papers keep the groups of 100 at all imbalances.
        draw: seed of the draw; papers share that of 0.
    """

    name: str
    _: KW_ONLY
    root: Path
    imbalance: Factor = 100.0
    groups_from: Factor | None = None
    draw: Seed = 0

    def list(self) -> Listing:
        batches = CIFAR[self.name]
        place = batches.place(expanded(self.root))
        meta = _unpickled(place / batches.meta)
        words = meta.get(batches.names)
        if not words or not fits(list[str], words):
            raise InputError(f"{place / batches.meta} must hold a list of class names under {batches.names!r}")
        class_names = tuple(map(spoken, words))
        pixels, labels = _images(place, batches.train, batches.labels, len(class_names))
        test_pixels, test_labels = _images(place, batches.test, batches.labels, len(class_names))
        largest = int(np.bincount(labels).max())
        counts = tail_counts("exponential", len(class_names), largest, self.imbalance)
        # A balanced dataset keeps its order, so that `data.tail` draws the same images from it.
        rows = subsample_by_counts(labels, counts, self.draw) if self.imbalance > 1 else np.arange(len(labels))
        groups = None
        if self.groups_from is not None:
            groups = tail_counts("exponential", len(class_names), largest, self.groups_from)
        splits = {
            "train": Split(ArrayImages(pixels[rows], f"{self.name}/train/"), labels[rows]),
            "test": Split(ArrayImages(test_pixels, f"{self.name}/test/"), test_labels),
        }
        return Listing(name=self.name, class_names=class_names, splits=splits, group_counts=groups)

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: files that are missing or damaged.
        """
        return self.list().dataset()

    def identity(self) -> str:
        """Hash of the names, sizes and modification times of the files."""
        batches = CIFAR[self.name]
        place = batches.place(expanded(self.root))
        files = [place / file for file in batches.files]
        return hashlib.sha256(";".join(content_hashes(files)).encode()).hexdigest()


def _images(
    place: Path, files: tuple[str, ...], key: str, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 32, 32, 3) pixels and (N,) labels of these files."""
    pixels, labels = [], []
    for file in files:
        batch = _unpickled(place / file)
        data, batch_labels = batch.get("data"), batch.get(key)
        if (
            not isinstance(data, np.ndarray)
            or data.ndim != 2
            or data.shape[1:] != (3072,)
            or data.dtype != np.uint8
            or not isinstance(batch_labels, list)
            or len(batch_labels) != len(data)
            or not all(isinstance(label, int) and 0 <= label < num_classes for label in batch_labels)
        ):
            raise InputError(
                f"{place / file} must hold `data`, (N, 3072) uint8, and `{key}`, N labels below {num_classes}; "
                "unpack the archive again"
            )
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(batch_labels, np.int64))
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
            raise pickle.UnpicklingError(f"it names {module}.{name}, which data does not need")
        return getattr(importlib.import_module(f"numpy._core.{short}" if short != module else module), name)


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        content = _PlainPickle(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise any type
        raise InputError(f"{file} cannot be read as a batch of CIFAR: {error}; unpack the archive again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a mapping, got {type(content).__name__}; unpack the archive again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
