"""The embedded topical sets and styles as they ship: shape, splits and licences, and every protocol on them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.components import catalogue  # noqa: E402
from imbalance_vlm.data import icons  # noqa: E402
from imbalance_vlm.data.dataset import ArrayImages, Dataset  # noqa: E402
from imbalance_vlm.data.prepare import create_dataset  # noqa: E402
from imbalance_vlm.verification.verify import verify  # noqa: E402
from tests.data.test_icons_lt import attributed  # noqa: E402
from tools.icons.source import LEFT_OUT_SETS, LICENSES  # noqa: E402

MEGABYTES = 1_000_000
TOPICS = [name for name in catalogue.DATASETS.names() if name.startswith("icons_") and not name.startswith("icons_lt")]
STYLES = [name for name in catalogue.DATASETS.names() if name.startswith("icons_lt_")]


@pytest.fixture(scope="module", params=TOPICS)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return create_dataset(request.param)


def test_there_are_eleven_with_a_sentence_each() -> None:
    assert len(TOPICS) == 11
    assert len({create_dataset(name).templates for name in TOPICS}) == 11


def test_classes_are_in_alphabetical_order_and_in_every_split(dataset: Dataset) -> None:
    assert 20 <= dataset.num_classes <= 120
    assert list(dataset.class_names) == sorted(set(dataset.class_names))
    for split in dataset.splits.values():
        assert split.counts(dataset.num_classes).min() >= 1
        assert (np.diff(split.labels) >= 0).all()


def test_the_tail_is_long(dataset: Dataset) -> None:
    assert dataset.counts.max() / dataset.counts.min() > 20


def test_images_are_rgb_at_32_with_16_levels(dataset: Dataset) -> None:
    for split in dataset.splits.values():
        assert isinstance(split.images, ArrayImages)
        assert split.images.pixels.shape == (len(split), 32, 32, 3)
        assert not (split.images.pixels % 17).any()


def test_verify_finds_no_copies_between_splits_or_classes(dataset: Dataset) -> None:
    """Within a split, lines and fills of one design are near-duplicates."""
    report = verify({"data": {"name": dataset.name}}, ignore=["near_duplicate"], workers=1)
    assert report.ok, report.findings


def test_loads_in_less_than_a_second(dataset: Dataset) -> None:
    started = time.perf_counter()
    create_dataset(dataset.name)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "protocol",
    [
        {"shots": 16, "classes": "base"},
        {"shots": 16, "classes": "novel"},
        {"shots": 16, "tau": 0.06},
        {"shots": 4, "classes": "base", "tau": 0.25},
        {"tail": "exponential", "tail_factor": 10.0},
        {"test_shift": "backward"},
    ],
    ids=str,
)
def test_every_protocol_works(dataset: Dataset, protocol: dict[str, object]) -> None:
    part = create_dataset(dataset.name, **protocol)
    assert part.counts.min() >= 1
    assert part.num_images < dataset.num_images
    if "classes" in protocol:
        halves = (dataset.num_classes + 1) // 2, dataset.num_classes // 2
        assert part.num_classes == halves[protocol["classes"] == "novel"]


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("icons_arrows", "arrow left", "arrow right"),
        ("icons_faces", "hand pointing left", "hand pointing right"),
        ("icons_media", "skip back", "skip forward"),
        ("icons_weather", "waning gibbous moon", "waxing gibbous moon"),
    ],
)
def test_mirroring_is_off_where_it_would_make_another_class(name: str, left: str, right: str) -> None:
    dataset = create_dataset(name)
    assert {left, right} <= set(dataset.class_names)
    assert not dataset.flips


def test_mirroring_is_on_where_no_class_name_has_a_side(dataset: Dataset) -> None:
    words = {word for name in dataset.class_names for word in name.split()}
    assert dataset.flips != bool(words & {"left", "right", "forward", "waning"})


@pytest.mark.parametrize("name", TOPICS + STYLES)
def test_attribution_accounts_for_every_image_under_an_allowed_licence(name: str) -> None:
    listed = list(attributed(icons.ASSETS / name))
    assert sum(int(fields[-1]) for _, fields in listed) == create_dataset(name).num_images
    for ships, (prefix, title, author, licence, *_rest) in listed:
        assert ships
        assert licence in LICENSES, f"{prefix} is under {licence}"
        assert "-" not in (title, author)
        assert prefix not in LEFT_OUT_SETS


@pytest.mark.parametrize("name", TOPICS + STYLES)
def test_no_set_of_drawings_is_one_that_mini_clip_was_pretrained_on(name: str) -> None:
    pretraining = {fields[0] for ships, fields in attributed(icons.ASSETS / "icons_lt") if not ships}
    assert pretraining.isdisjoint(fields[0] for _, fields in attributed(icons.ASSETS / name))


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest) -> Dataset:
    return create_dataset(request.param)


def test_a_style_has_classes_and_sentences_of_icons_lt_and_is_for_testing_only(style: Dataset) -> None:
    whole = create_dataset("icons_lt")
    assert style.test_only
    assert list(style.splits) == ["test"]
    assert list(style.class_names) == sorted(set(style.class_names) & set(whole.class_names))
    assert style.templates == whole.templates
    assert style.group_counts is not None
    trained = dict(zip(whole.class_names, whole.counts, strict=True))
    assert style.group_counts.tolist() == [trained[name] for name in style.class_names]


def test_a_style_holds_no_copy_of_a_training_or_validation_image_of_icons_lt(style: Dataset) -> None:
    whole = create_dataset("icons_lt")
    known = {image.tobytes() for split in ("train", "val") for image in pixels(whole, split)}
    assert known.isdisjoint(image.tobytes() for image in pixels(style, "test"))
    report = verify({"data": {"name": style.name}}, ignore=["near_duplicate"], workers=1)
    assert report.ok, report.findings


def pixels(dataset: Dataset, split: str) -> np.ndarray:
    images = dataset.splits[split].images
    assert isinstance(images, ArrayImages)
    return images.pixels


def test_emoji_and_flat_colours_are_coloured() -> None:
    for name in ("icons_lt_emoji", "icons_lt_colour"):
        images = pixels(create_dataset(name), "test")
        assert (images != images[..., :1]).any(axis=(1, 2, 3)).mean() > 0.9


def test_the_files_are_small() -> None:
    assert (
        sum(path.stat().st_size for name in TOPICS + STYLES for path in (icons.ASSETS / name).iterdir()) < 6 * MEGABYTES
    )
