"""Icons-LT as it ships: its shape, its tail, its licences, and that no test drawing was nearly seen before."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.data import icons  # noqa: E402
from imbalance_vlm.data.dataset import ArrayImages, Dataset  # noqa: E402
from tools.icons.hashing import THRESHOLD, near_pairs, perceptual_hash  # noqa: E402
from tools.icons.source import LEFT_OUT_SETS, LICENSES  # noqa: E402

ASSETS = icons.ASSETS / "icons_lt"
MEGABYTES = 1_000_000


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return icons.IconsReader("icons_lt").read()


@pytest.fixture(scope="module")
def hashes(dataset: Dataset) -> dict[str, np.ndarray]:
    return {split: perceptual_hash(_pixels(dataset, split)) for split in ("train", "val", "test")}


def _pixels(dataset: Dataset, split: str) -> np.ndarray:
    images = dataset.splits[split].images
    assert isinstance(images, ArrayImages)
    return images.pixels


def test_classes_are_named_once_and_in_alphabetical_order(dataset: Dataset) -> None:
    assert 500 <= dataset.num_classes <= 1100
    assert list(dataset.class_names) == sorted(set(dataset.class_names))
    assert all(name == name.lower().strip() and len(name) > 1 for name in dataset.class_names)
    assert not any(name.replace(" ", "").isdigit() for name in dataset.class_names)


def test_images_are_rgb_at_32_with_16_levels_and_none_is_blank(dataset: Dataset) -> None:
    for split in dataset.splits:
        pixels = _pixels(dataset, split)
        assert pixels.shape == (len(dataset.splits[split].labels), 32, 32, 3)
        assert pixels.dtype == np.uint8
        assert set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))) <= set(range(0, 256, 17))
        darkest = np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
        assert ((darkest < 200).sum(axis=(1, 2)) >= 12).all()


def test_every_class_has_ten_test_and_three_validation_images(dataset: Dataset) -> None:
    for split, expected in (("test", 10), ("val", 3)):
        counts = np.bincount(dataset.splits[split].labels, minlength=dataset.num_classes)
        assert (counts == expected).all()


def test_the_tail_is_long_and_every_group_is_there(dataset: Dataset) -> None:
    counts = dataset.counts
    assert counts.min() >= 5  # 18 images less 13
    assert counts.max() / counts.min() > 30
    assert min((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()) >= 20


def test_mirroring_is_off_because_left_and_right_are_classes(dataset: Dataset) -> None:
    assert not dataset.flips
    assert {"arrow left", "arrow right"} <= set(dataset.class_names)


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_test_image_has_a_near_duplicate_in_another_split(hashes: dict[str, np.ndarray], split: str) -> None:
    near, _ = near_pairs(hashes["test"], hashes[split])
    assert len(near) == 0


def corpus_hashes() -> np.ndarray:
    """(M, 2) perceptual hashes of the pre-training corpus, which ship with the dataset for this check."""
    planes = np.frombuffer(zlib.decompress((ASSETS / "corpus.bin").read_bytes()), np.uint8).reshape(16, -1)
    return np.ascontiguousarray(planes.T).view("<u8").astype(np.uint64)


def test_no_test_image_has_a_near_duplicate_in_the_corpus(hashes: dict[str, np.ndarray]) -> None:
    corpus = corpus_hashes()
    assert len(corpus) > 100_000
    near, _ = near_pairs(hashes["test"], corpus)
    assert len(near) == 0


def test_the_near_duplicate_check_would_notice_one(dataset: Dataset, hashes: dict[str, np.ndarray]) -> None:
    """A few pixels of anti-aliasing more must not hide a copy: the checks above would pass on a hash that is noise."""
    copies = _pixels(dataset, "test")[:300].copy()
    copies[:, 10:12, 10:12] = np.maximum(copies[:, 10:12, 10:12], 34) - 34
    rows, _ = near_pairs(hashes["test"][:300], perceptual_hash(copies), THRESHOLD)
    assert len(np.unique(rows)) > 270


def test_no_test_image_is_pixel_for_pixel_in_another_split(dataset: Dataset) -> None:
    tested = {image.tobytes() for image in _pixels(dataset, "test")}
    for split in ("train", "val"):
        assert tested.isdisjoint(image.tobytes() for image in _pixels(dataset, split))


def test_no_class_trains_on_the_same_pixels_twice(dataset: Dataset) -> None:
    labels = dataset.splits["train"].labels
    seen = {(int(label), image.tobytes()) for label, image in zip(labels, _pixels(dataset, "train"), strict=True)}
    assert len(seen) == len(labels)


def attributed(folder: Path) -> Iterator[tuple[bool, list[str]]]:
    """(ships, fields) of every set that the ATTRIBUTION of a folder lists."""
    ships = True
    for line in (folder / "ATTRIBUTION").read_text(encoding="utf-8").splitlines():
        ships = ships and not line.startswith("Drawings that mini-clip")
        if line.count("\t") == 6:
            yield ships, line.split("\t")


def test_attribution_names_author_and_an_allowed_licence_of_every_set() -> None:
    listed = list(attributed(ASSETS))
    assert len(listed) > 100
    for _, (prefix, title, author, licence, *_rest) in listed:
        assert licence in LICENSES, f"{prefix} is under {licence}"
        assert title != "-"
        assert author != "-"
        assert prefix not in LEFT_OUT_SETS


def test_attribution_accounts_for_every_image_that_ships(dataset: Dataset) -> None:
    listed = sum(int(fields[-1]) for ships, fields in attributed(ASSETS) if ships)
    assert listed == sum(len(split) for split in dataset.splits.values())


def test_no_set_both_ships_and_pretrains() -> None:
    shipped = {fields[0] for ships, fields in attributed(ASSETS) if ships}
    pretraining = {fields[0] for ships, fields in attributed(ASSETS) if not ships}
    assert shipped.isdisjoint(pretraining)


def test_no_copyleft_or_non_commercial_licence_is_allowed() -> None:
    assert not [
        licence for licence in LICENSES if any(word in licence for word in ("GPL", "MPL", "-SA", "-NC", "BY-3"))
    ]


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 9 * MEGABYTES
