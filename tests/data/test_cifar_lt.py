"""CIFAR-LT: the draw that papers share, its published totals and groups, and refused pickles."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import ArrayImages, Dataset
from imbalance_vlm.data.prepare import apply_protocol, create_dataset
from imbalance_vlm.data.tails import subsample_by_counts, tail_counts
from imbalance_vlm.long_tail import LongTail
from tests.data import miniatures


@pytest.fixture
def root(tmp_path: Path) -> Path:
    miniatures.cifar100_lt(tmp_path)
    return Path(miniatures.cifar10_lt(tmp_path)["root"])


def pixels(data: Dataset, split: str = "train") -> np.ndarray:
    images = data.splits[split].images
    assert isinstance(images, ArrayImages)
    return images.pixels


@pytest.mark.parametrize(
    ("factor", "total", "smallest", "groups"),
    [
        (10, 19_573, 50, [69, 31, 0]),
        (50, 12_608, 10, [41, 41, 18]),
        (100, 10_847, 5, [35, 35, 30]),
        (200, 9_502, 2, [30, 31, 39]),
    ],
)
def test_totals_and_groups_of_cifar_100(factor: float, total: int, smallest: int, groups: list[int]) -> None:
    counts = tail_counts("exponential", 100, 500, factor)
    assert (counts.sum(), counts.max(), counts.min()) == (total, 500, smallest)
    tail = LongTail(counts)
    assert [len(tail.groups[group]) for group in ("many", "medium", "few")] == groups


def test_totals_and_groups_of_cifar_10() -> None:
    tail = LongTail(tail_counts("exponential", 10, 5000, 100))
    assert (tail.counts.sum(), tail.counts.min()) == (12_406, 50)
    assert [len(tail.groups[group]) for group in ("many", "medium", "few")] == [8, 2, 0]


def test_the_draw_is_the_one_that_papers_share() -> None:
    """Written from the rule: the global generator seeded with 0, each class shuffled in place, its head taken."""
    labels = np.random.default_rng(1).integers(0, 5, 300)
    counts = [40, 20, 10, 5, 2]
    state = np.random.get_state()
    np.random.seed(0)
    expected: list[int] = []
    for label in range(5):
        rows = [row for row in range(300) if labels[row] == label]
        array = np.array(rows)
        np.random.shuffle(array)
        expected += array[: counts[label]].tolist()
    np.random.set_state(state)
    assert subsample_by_counts(labels, np.array(counts), 0).tolist() == expected
    assert expected != [row for label in range(5) for row in np.flatnonzero(labels == label)[: counts[label]]]
    assert np.array_equal(np.random.get_state()[1], state[1]), "the global generator must not move"


def test_a_balanced_dataset_has_all_images_and_labels(root: Path) -> None:
    data = create_dataset("cifar10_lt", root=root, imbalance=1)
    assert data.class_names == miniatures.CIFAR10
    assert data.counts.tolist() == [20] * 10
    with (root / "cifar-10-batches-py" / "test_batch").open("rb") as stream:
        raw = pickle.load(stream)
    for row in (0, 7):
        assert np.array_equal(pixels(data, "test")[row].transpose(2, 0, 1).ravel(), raw[b"data"][row])
    assert data.splits["test"].labels.tolist() == raw[b"labels"]


def test_root_may_be_the_folder_of_the_batches(root: Path) -> None:
    assert create_dataset("cifar100_lt", root=root / "cifar-100-python", imbalance=3).class_names[0] == "maple tree"


def test_a_tail_of_the_balanced_dataset_is_the_same_draw(root: Path) -> None:
    ours = create_dataset("cifar10_lt", root=root, imbalance=10)
    thinned = apply_protocol(create_dataset("cifar10_lt", root=root, imbalance=1), tail="exponential", tail_factor=10)
    assert ours.counts.tolist() == thinned.counts.tolist()
    assert np.array_equal(pixels(ours), pixels(thinned))
    assert not np.array_equal(pixels(ours), pixels(create_dataset("cifar10_lt", root=root, imbalance=10, draw=1)))


def test_groups_from_another_imbalance(root: Path) -> None:
    assert create_dataset("cifar10_lt", root=root, imbalance=10).group_counts is None
    data = create_dataset("cifar10_lt", root=root, imbalance=10, groups_from=4)
    assert data.group_counts is not None
    assert data.counts.tolist() == tail_counts("exponential", 10, 20, 10).tolist()
    assert data.group_counts.tolist() == tail_counts("exponential", 10, 20, 4).tolist()


def test_missing_files_are_named(root: Path) -> None:
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"must hold cifar-10-batches-py/ with data_batch_1, .*University of Toronto"):
        create_dataset("cifar10_lt", root=root)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("content", [Malicious(), [1], {b"data": np.zeros((2, 3))}, {b"data": 1}, None])
def test_other_pickles_are_refused_and_run_nothing(root: Path, tmp_path: Path, content: Any) -> None:
    file = root / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="test_batch.*unpack the archive again"):
        create_dataset("cifar10_lt", root=root)
    assert not list(tmp_path.rglob("owned"))


def test_a_batch_cut_short_is_refused(root: Path) -> None:
    file = root / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="data_batch_1 cannot be read"):
        create_dataset("cifar10_lt", root=root)


@pytest.mark.parametrize("names", [5, [], ["cat", 3], "cat", None], ids=str)
def test_class_names_that_are_no_list_of_names_are_refused(names: Any, root: Path) -> None:
    (meta,) = root.rglob("batches.meta")
    meta.write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(InputError, match="must hold a list of class names under 'label_names'"):
        create_dataset(name="cifar10_lt", root=root)
