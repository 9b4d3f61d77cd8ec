"""Hugging Face datasets saved to disk; skipped without the package."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import create_dataset

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")


def read_saved(root: Path, **settings: Any) -> Dataset:
    return create_dataset("hf_disk", root=root, **settings)


def save(folder: Path, splits: dict[str, list[Any]], names: list[str] | None = None, alone: bool = False) -> Path:
    with warnings.catch_warnings():  # the package warns about its own pickles
        warnings.simplefilter("ignore")
        return _save(folder, splits, names, alone)


def _save(folder: Path, splits: dict[str, list[Any]], names: list[str] | None, alone: bool) -> Path:
    import datasets

    def part(labels: list[Any]) -> Any:
        images = [Image.new("L", (4, 4), 10 * row) for row in range(len(labels))]
        words = (
            datasets.ClassLabel(names=names) if names else datasets.Value("string" if labels[0] == "fox" else "int64")
        )
        kinds = datasets.Features({"image": datasets.Image(), "label": words, "note": datasets.Value("string")})
        columns = {"image": images, "label": labels, "note": ["x"] * len(labels)}
        return datasets.Dataset.from_dict(columns, features=kinds)

    parts = {name: part(labels) for name, labels in splits.items()}
    (next(iter(parts.values())) if alone else datasets.DatasetDict(parts)).save_to_disk(str(folder))
    return folder


@needs_datasets
def test_a_dataset_dict_with_class_labels(tmp_path: Path) -> None:
    root = save(tmp_path / "hf", {"train": [0, 0, 1], "validation": [1], "test": [0, 1]}, ["red_fox", "owl"])
    data = read_saved(root)
    assert (data.name, data.class_names, data.counts.tolist()) == ("hf", ("red fox", "owl"), [2, 1])
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 3, "val": 1, "test": 2}
    image = data.splits["train"].images[1]
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (10, 10, 10))


@needs_datasets
def test_one_dataset_is_split_by_seed(tmp_path: Path) -> None:
    root = save(tmp_path / "hf", {"train": ["fox"] * 10 + ["owl"] * 5 + ["rare"]}, alone=True)
    first, again, other = read_saved(root), read_saved(root), read_saved(root, split_seed=1)
    assert first.counts.tolist() == [8, 4, 1]
    assert first.splits["test"].fingerprint == again.splits["test"].fingerprint != other.splits["test"].fingerprint


@needs_datasets
def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    root = save(tmp_path / "hf", {"train": [0, 1], "test": [0, 1]}, ["a", "b"])
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    read_saved(root).splits["train"].images[0].load()
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


@needs_datasets
def test_wrong_datasets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="that `save_to_disk` of Hugging Face `datasets` wrote"):
        read_saved(tmp_path / "other")
    root = save(tmp_path / "hf", {"train": [0, 1], "test": [0, -1]})
    with pytest.raises(InputError, match="must have a column 'img', got image, label, note.* Did you|Name it"):
        read_saved(root, image_column="img")
    with pytest.raises(
        InputError, match="split 'test', row 1, column 'label': a label must be a name or a whole number >= 0, got '-1'"
    ):
        read_saved(root)
    with pytest.raises(InputError, match="got 'holdout'"):
        read_saved(save(tmp_path / "odd", {"train": [0], "holdout": [0]}))


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_saved(tmp_path / "nowhere")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="the package datasets is installed")
def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install datasets"):
        read_saved(tmp_path)
