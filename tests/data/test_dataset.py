"""Datasets refuse what would give wrong numbers later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import ArrayImages, Dataset, FileImages, Split
from imbalance_vlm.data.prepare import apply_protocol, create_dataset


def images(count: int, seed: int = 0) -> ArrayImages:
    return ArrayImages(np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8), "test/")


def split(labels: Any) -> Split:
    return Split(images(len(labels)), labels)


def dataset(**changes: Any) -> Dataset:
    return Dataset(**{
        "name": "d",
        "class_names": ("cat", "dog"),
        "splits": {"train": split([0, 0, 1]), "test": split([0, 1])},
    } | changes)  # fmt: skip


def test_counts_are_those_of_the_training_split() -> None:
    assert dataset(class_names=("cat", "dog", "emu")).counts.tolist() == [2, 1, 0]


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0], [1, 10**9]])
def test_labels_out_of_range_are_refused_with_the_image(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"split 'test' .* must lie in 0..1 \(2 classes\), got .* for image 'test/"):
        dataset(splits={"train": split([0, 1]), "test": split(labels)})


@pytest.mark.parametrize("labels", [[0], [0, 1, 1], [[0, 1]], 0])
def test_there_is_one_label_per_image(labels: Any) -> None:
    with pytest.raises(InputError, match="one label for each of 2 images"):
        Split(images(2), labels)


@pytest.mark.parametrize("labels", [[0.5, 1.0], ["cat", "dog"], [None, 1]])
def test_labels_are_whole_numbers(labels: Any) -> None:
    with pytest.raises(InputError, match="labels"):
        Split(images(2), labels)


def test_duplicate_class_names_are_refused() -> None:
    with pytest.raises(InputError, match="'cat' more than once"):
        dataset(class_names=("cat", "cat"))


def test_missing_and_empty_splits_are_refused() -> None:
    with pytest.raises(InputError, match="must have a 'test' split"):
        dataset(splits={"train": split([0])})
    with pytest.raises(InputError, match="split 'test' of dataset 'd' holds no images"):
        dataset(splits={"train": split([0]), "test": split([])})


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 4), np.uint8)]
)
def test_pixels_are_rgb_bytes(pixels: Any) -> None:
    with pytest.raises(InputError, match="`pixels` must be"):
        ArrayImages(pixels)


def test_a_changed_image_or_label_changes_the_fingerprint() -> None:
    assert images(2).fingerprint == images(2).fingerprint
    assert images(2).fingerprint != images(2, seed=1).fingerprint
    assert split([0, 1]).fingerprint != split([1, 0]).fingerprint


def test_taking_rows_takes_images_and_labels_together() -> None:
    whole = split([0, 1, 0])
    part = whole.take(np.array([2, 1]))
    assert part.labels.tolist() == [0, 1]
    assert np.array_equal(np.asarray(part.images[0]), np.asarray(whole.images[2]))


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        (["a photo"], "one {}"),
        (["{} and {}"], "one {}"),
        (["{0}"], "one {}"),
        ([], "at least one"),
        ("imagenet", "'dataset', 'simple', 'openai'"),
    ],
)
def test_wrong_templates_are_refused(templates: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        apply_protocol(dataset(), templates=templates)
    assert words in str(error.value)


def test_templates_by_name_or_as_sentences() -> None:
    assert apply_protocol(dataset()).templates == ("a photo of a {}.",)
    assert apply_protocol(dataset(), templates=["a {}", "the {}"]).templates == ("a {}", "the {}")
    ensemble = apply_protocol(dataset(), templates="openai").templates
    assert len(ensemble) == 80
    assert "a bad photo of a dog." in [template.format("dog") for template in ensemble]


def test_an_unknown_dataset_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown dataset 'folders'. Did you mean 'folder'"):
        create_dataset("folders", root="x")


def test_allow_empty_reaches_the_long_tail() -> None:
    data = dataset(class_names=("cat", "dog", "emu"))
    with pytest.raises(InputError, match=r"got 0 for class 2 \('emu'\).*allow_empty"):
        data.long_tail()
    tail = apply_protocol(data, allow_empty=True).long_tail(many=1, few=1)
    assert tail.counts.tolist() == [2, 1, 0]
    assert tail.groups["few"].tolist() == [2]


def test_images_of_16_bits_keep_their_shades(tmp_path: Path) -> None:
    """Pillow clips 16-bit values at 255, which makes every such image white."""
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    decoded = np.asarray(FileImages(tmp_path, ("deep.png",))[0])
    np.testing.assert_allclose(decoded[..., 0], levels / 257, atol=1)
