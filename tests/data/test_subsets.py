"""Shots, base and novel classes, tails and shifted tests, and their place in `apply_protocol`."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from imbalance_vlm import InputError
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.prepare import apply_protocol, create_dataset, dataset_identity
from imbalance_vlm.data.subsets import base_novel, decay_counts, few_shot, with_classes
from imbalance_vlm.data.tails import tail_counts, with_shifted_test, with_tail
from imbalance_vlm.values import mistake


def split(labels: Any, first: int = 0) -> Split:
    """Images of one pixel that carry their number."""
    pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0] = (first + np.arange(len(labels))) % 256
    return Split(ArrayImages(pixels), labels)


def dataset(train: Any = None, test: Any = None, val: Any = None, classes: int = 5, **more: Any) -> Dataset:
    splits = {
        "train": split(np.tile(np.arange(classes), 20) if train is None else train),
        "test": split(np.repeat(np.arange(classes), 10) if test is None else test),
    }
    if val is not None:
        splits["val"] = split(val)
    return Dataset("d", tuple(f"class {label}" for label in range(classes)), splits, **more)


def numbers(part: Split) -> list[int]:
    assert isinstance(part.images, ArrayImages)
    return part.images.pixels[:, 0, 0, 0].tolist()


# -- tails -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("classes", "largest", "factor"), [(10, 5000, 100.0), (7, 64, 8.0), (4, 100, 10.0), (1, 9, 5.0)]
)
def test_the_shapes_of_tails(classes: int, largest: int, factor: float) -> None:
    last = max(classes - 1, 1)
    expected = {
        "exponential": [largest * (1 / factor) ** (rank / last) for rank in range(classes)],
        "pareto": [largest / (rank + 1) ** math.log(factor, max(classes, 2)) for rank in range(classes)],
        "step": [largest] * max(classes // 2, 1) + [largest / factor] * (classes - max(classes // 2, 1)),
    }
    for kind, exact in expected.items():
        counts = tail_counts(kind, classes, largest, factor)  # type: ignore[arg-type]
        assert counts.tolist() == [max(int(count + 1e-9 * (kind == "pareto")), 1) for count in exact], kind
        assert counts[0] == largest
        if classes > 1:
            assert abs(counts[-1] - largest / factor) < 1 + 1e-9
    assert not np.array_equal(tail_counts("exponential", 10, 5000, 100), tail_counts("pareto", 10, 5000, 100))


def test_a_class_keeps_one_image_and_gains_none() -> None:
    assert tail_counts("exponential", 5, 10, 1000).min() == 1
    assert with_tail(dataset(), "step", 4, largest=50).counts.tolist() == [20, 20, 12, 12, 12]


def test_which_classes_are_the_head() -> None:
    uneven = dataset(np.repeat(np.arange(5), [8, 9, 20, 12, 10]))
    assert with_tail(uneven, "exponential", 4).counts.tolist() == [8, 9, 10, 7, 5]
    by_size = with_tail(uneven, "exponential", 4, order="size").counts
    assert by_size.tolist() == [5, 7, 20, 12, 10]
    drawn = [with_tail(dataset(), "exponential", 20, order="random", seed=seed).counts.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == sorted(drawn[2]) == sorted(tail_counts("exponential", 5, 20, 20).tolist())


def test_meaningless_tails_are_refused() -> None:
    with pytest.raises(InputError, match="must be at least 1, got 0.5"):
        tail_counts("step", 3, 10, 0.5)
    with pytest.raises(InputError, match="largest class of at least 1"):
        tail_counts("step", 3, 0, 2)


def test_shifted_tests_follow_or_reverse_the_training_counts() -> None:
    tailed = with_tail(dataset(), "exponential", 20, order="random", seed=3)
    forward, backward, uniform = (
        with_shifted_test(tailed, shift, 10).splits["test"].counts(5)  # type: ignore[arg-type]
        for shift in ("forward", "backward", "uniform")
    )
    head_first = np.argsort(-tailed.counts)
    assert forward[head_first].tolist() == [10, 5, 3, 1, 1]
    assert backward[head_first].tolist() == [1, 1, 3, 5, 10]
    assert uniform.tolist() == [10] * 5
    assert with_shifted_test(tailed, "forward", 10).counts.tolist() == tailed.counts.tolist()


def test_shifted_tests_of_an_uneven_test_set_are_exact() -> None:
    uneven = dataset(test=np.repeat(np.arange(5), [30, 8, 20, 0, 9]))
    assert with_shifted_test(uneven, "uniform", 4).splits["test"].counts(5).tolist() == [8, 8, 8, 0, 8]
    assert with_shifted_test(uneven, "forward", 8).splits["test"].counts(5).tolist() == [8, 4, 2, 0, 1]


# -- shots -----------------------------------------------------------------------------------------------------------
def test_shots_are_the_draw_that_papers_share() -> None:
    """The rule in plain steps: Python's generator from the seed, classes as they first occur, train and then val."""
    labels = np.random.default_rng(0).integers(0, 5, 120)
    data = few_shot(dataset(labels, val=labels), 8, seed=7)
    random.seed(7)
    for name, count in (("train", 8), ("val", 4)):
        expected: list[int] = []
        for label in dict.fromkeys(labels.tolist()):
            expected += random.sample([row for row in range(120) if labels[row] == label], count)
        assert numbers(data.splits[name]) == expected
        assert data.splits[name].counts(5).tolist() == [count] * 5
    assert numbers(data.splits["test"]) == numbers(dataset().splits["test"])


def test_shots_by_seed() -> None:
    drawn = [numbers(few_shot(dataset(), 2, seed=seed).splits["train"]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_class_with_fewer_images_than_shots_gives_all() -> None:
    assert few_shot(dataset([0, 0, 0, 1, 2, 2, 3, 4]), 2).counts.tolist() == [2, 1, 2, 1, 1]


@pytest.mark.parametrize(("shots", "val"), [(1, 1), (2, 2), (4, 4), (16, 4)])
def test_validation_shots(shots: int, val: int) -> None:
    data = few_shot(dataset(val=np.repeat(np.arange(5), 9)), shots)
    assert data.splits["val"].counts(5).tolist() == [val] * 5


# -- classes ---------------------------------------------------------------------------------------------------------
def test_base_and_novel_classes_are_labelled_from_zero() -> None:
    base, novel = base_novel(dataset(val=[0, 1, 2, 3, 4]))
    assert (base.class_names, novel.class_names) == (("class 0", "class 1", "class 2"), ("class 3", "class 4"))
    assert base.counts.tolist() == [20] * 3
    assert novel.counts.tolist() == [20] * 2
    whole = dataset().splits["test"]
    expected = [number for number, label in zip(numbers(whole), whole.labels, strict=True) if label >= 3]
    assert numbers(novel.splits["test"]) == expected
    assert novel.splits["test"].labels.tolist() == [0] * 10 + [1] * 10


def test_group_counts_follow_the_selected_classes() -> None:
    part = with_classes(dataset(group_counts=np.array([50, 40, 30, 20, 10])), np.array([4, 0]))
    assert part.group_counts is not None
    assert part.group_counts.tolist() == [10, 50]
    assert part.class_names == ("class 4", "class 0")


def test_classes_without_images_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes each, but dataset 'd' has 1"):
        base_novel(dataset(classes=1))
    with pytest.raises(InputError, match="no image of the novel classes in 'test'"):
        base_novel(dataset(test=[0, 1, 2]))
    data = base_novel(dataset(val=[0, 1]))
    assert "val" in data[0].splits
    assert "val" not in data[1].splits


@pytest.mark.parametrize(("tau", "expected"), [(1.0, [16] * 5), (0.25, [16, 11, 8, 5, 4]), (0.06, [16, 7, 3, 1, 1])])
def test_decay_counts(tau: float, expected: list[int]) -> None:
    assert decay_counts(5, 16, tau).tolist() == expected
    assert decay_counts(1, 16, tau).tolist() == [16]


# -- the protocol ------------------------------------------------------------------------------------------------------
def test_the_decay_thins_base_classes_in_a_random_order() -> None:
    settings: dict[str, Any] = {"shots": 16, "tau": 0.25, "classes": "base"}
    first, again, other = (apply_protocol(dataset(classes=10), draw_seed=seed, **settings) for seed in (0, 0, 1))
    assert sorted(first.counts.tolist()) == sorted(decay_counts(5, 16, 0.25).tolist())
    assert first.counts.tolist() == again.counts.tolist() != other.counts.tolist()
    few = apply_protocol(dataset(classes=10), shots=16, classes="base")
    assert set(numbers(first.splits["train"])) < set(numbers(few.splits["train"]))
    novel = apply_protocol(dataset(classes=10), shots=16, tau=0.25, classes="novel")
    assert novel.counts.tolist() == [16] * 5


def test_shots_are_drawn_before_classes_are_selected() -> None:
    labels = np.random.default_rng(0).integers(0, 6, 120)
    data = dataset(labels, classes=6)
    whole = few_shot(data, 3, seed=0)
    novel = apply_protocol(data, shots=3, classes="novel")
    expected = [
        n for n, label in zip(numbers(whole.splits["train"]), whole.splits["train"].labels, strict=True) if label > 2
    ]
    assert numbers(novel.splits["train"]) == expected


def test_groups_by_the_full_dataset_or_by_the_training_images() -> None:
    assert apply_protocol(dataset(), shots=2).group_counts is None
    kept = apply_protocol(dataset(), shots=2, classes="novel", split_by="dataset")
    assert kept.group_counts is not None
    assert kept.group_counts.tolist() == [20, 20]
    assert kept.counts.tolist() == [2, 2]


def test_a_decay_needs_shots() -> None:
    with pytest.raises(InputError, match="needs `shots`"):
        apply_protocol(dataset(), tau=0.25)


def test_the_default_protocol_changes_nothing() -> None:
    data = dataset()
    assert apply_protocol(data) is data


def test_datasets_for_testing_only() -> None:
    parts = {"test": split([0, 1, 1])}
    data = Dataset("v2", ("a", "b"), parts, test_only=True)
    assert data.counts.tolist() == [1, 2]
    for settings in ({"tail": "step"}, {"shots": 1}):
        with pytest.raises(InputError, match="is for testing only"):
            apply_protocol(data, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must have a 'train' split"):
        Dataset("v2", ("a", "b"), parts)
    with pytest.raises(InputError, match="must have a 'test' split"):
        Dataset("v2", ("a", "b"), {"train": split([0, 1])}, test_only=True)


def test_there_is_one_group_count_per_class() -> None:
    with pytest.raises(InputError, match="`group_counts` of dataset 'd' must hold a count for each of 5 classes"):
        dataset(group_counts=np.array([1, 2]))


@pytest.mark.parametrize(
    "change",
    [
        {"tail": "step"},
        {"tail": "step", "tail_factor": 5.0},
        {"shots": 2},
        {"shots": 2, "tau": 0.5},
        {"classes": "base"},
        {"test_shift": "forward"},
        {"draw_seed": 1},
        {"split_by": "dataset"},
    ],
)
def test_every_setting_is_part_of_the_identity_and_reaches_the_dataset(change: dict[str, Any]) -> None:
    plain = {"name": "icons_lt"}
    assert dataset_identity(plain) == dataset_identity(dict(plain))
    assert dataset_identity(plain | change) != dataset_identity(plain)


def test_every_dataset_accepts_protocol_settings() -> None:
    data = create_dataset("icons_lt", classes="base", shots=4, tau=0.25, test_shift="uniform")
    assert data.counts.max() == 4
    assert data.counts.min() == 1


def test_every_default_is_a_value_that_a_recipe_may_give() -> None:
    for name, setting in settings_of(apply_protocol).items():
        assert mistake(setting.annotation, setting.default) is None, name
    assert mistake(settings_of(apply_protocol)["tail_factor"].annotation, 0.5)
    assert mistake(settings_of(apply_protocol)["tail"].annotation, "exponentail")
