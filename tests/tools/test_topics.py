"""`tools/icons/topics.py`, `copies.py` and `styles.py`: the word list, splits without copies, and styles by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split  # noqa: E402
from imbalance_vlm.verification.collection import Collection, listed_images  # noqa: E402
from imbalance_vlm.verification.verify import verify  # noqa: E402
from tools.icons import copies, styles, topics  # noqa: E402

TOPIC = topics.Topic("shapes", "a {}", True, {f"shape {number}": (f"shape {number}",) for number in range(6)})


def drawings(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """60 blots of 6 classes, and for every third of them a copy with a few changed pixels, of a class of its own."""
    rng = np.random.default_rng(seed)
    blots = np.kron(rng.integers(0, 2, (60, 8, 8)), np.ones((4, 4), int)) * 255
    near = blots[::3].copy()
    near[:, 10:12, 10:12] = 119
    images = np.concatenate([blots, near]).astype(np.uint8)
    labels = np.concatenate([np.arange(60) % 6, rng.integers(0, 6, len(near))])
    return np.repeat(images[..., None], 3, axis=-1), labels


def test_a_concept_is_of_one_class(tmp_path: Path) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text("icons_x:\n  sentence: a {}\n  flips: true\n  classes: |\n    cat: kitten\n    dog: kitten\n")
    with pytest.raises(ValueError, match="kitten"):
        topics.read_topics(file)


def test_the_word_list_is_in_order_of_the_datasets_and_has_one_place_per_sentence() -> None:
    read = topics.read_topics()
    assert [topic.name for topic in read] == sorted(topic.name for topic in read)
    assert all(topic.sentence.count("{}") == 1 for topic in read)


def test_members_follow_the_spelling_in_use() -> None:
    topic = topics.Topic("places", "{}", True, {"lighthouse": ("light house",), "bridge": ("bridge",)})
    labels = topics.members(
        topic, ["lighthouse", "bridge", "other", "bridge"], {"light house": "lighthouse"}, np.array([1, 1, 1, 0], bool)
    )
    assert labels.tolist() == [1, 0, -1, -1]


def test_equal_drawings_count_once_for_the_class_of_most_and_not_at_all_without_one() -> None:
    images = np.zeros((6, 2, 2, 3), np.uint8)
    images[4:] = 9  # two equal drawings of two classes
    assert topics.without_copies(np.array([1, 0, 0, 0, 0, 1]), images).tolist() == [False, True] + [False] * 4


def test_near_duplicates_are_those_of_verify() -> None:
    images, labels = drawings()
    look = copies.looks(images)
    left, right = copies.alike(look, look)
    pairs = {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True) if a < b}
    assert pairs == {(3 * number, 60 + number) for number in range(20)}
    clusters = copies.clusters_of(len(images), (left, right))
    assert sorted(len(rows) for rows in clusters) == [1] * 40 + [2] * 20
    dataset = Dataset("blots", tuple("abcdef"), {"train": Split(ArrayImages(images), labels)} | _test_split())
    collection = Collection("blots", "blots", dataset.class_names, listed_images(dataset))
    assert verify(collection, workers=1).tally == {"near_duplicate": 20}


def _test_split() -> dict[str, Split]:
    blank = np.full((1, 32, 32, 3), 255, np.uint8)
    return {"test": Split(ArrayImages(blank), [0])}


def test_splits_share_no_near_duplicates_and_nothing_seen_is_tested() -> None:
    images, labels = drawings()
    seen = np.zeros(len(labels), bool)
    seen[:12] = True
    made = topics.make_topic(TOPIC, labels, np.arange(len(labels)) % 4, images, copies.looks(images), seen)
    assert len(made.names) == 6
    part_of = {int(row): part for part, rows in made.rows.items() for row in rows}
    assert len(part_of) == sum(map(len, made.rows.values()))
    pairs = [(part_of.get(3 * number), part_of.get(60 + number)) for number in range(20)]
    assert all(original == copy for original, copy in pairs if original and copy)
    assert {part_of[row] for row in range(12) if row in part_of} == {"train"}
    for part, rows in made.rows.items():
        assert made.labels[part].tolist() == sorted(made.labels[part])
        assert [made.names[label] for label in made.labels[part]] == [f"shape {labels[row]}" for row in rows]


def test_a_class_in_one_cluster_still_gets_test_images_and_their_near_duplicates_are_left_out() -> None:
    chain = np.arange(20)
    near = np.concatenate([chain, chain[1:], chain[:-1]]), np.concatenate([chain, chain[:-1], chain[1:]])
    parts = topics.split(np.zeros(20, int), near, np.zeros(20, bool))
    assert (parts == "test").sum() >= topics.LEAST_TESTED
    for left, right in zip(*near, strict=True):
        assert len({parts[left], parts[right]} - {""}) < 2, "near-duplicates in two splits"


def test_a_class_of_one_drawer_is_left_out() -> None:
    images, labels = drawings()
    family_of = np.arange(len(labels)) % 4
    family_of[labels == 2] = 1
    unseen = np.zeros(len(labels), bool)
    made = topics.make_topic(TOPIC, labels, family_of, images, copies.looks(images), unseen)
    assert "shape 2" not in made.names
    assert "shape 1" in made.names


@pytest.mark.parametrize(
    ("prefix", "icon", "expected"),
    [
        ("twemoji", "cat", {"icons_lt_emoji"}),
        ("ph", "cat-duotone", {"icons_lt_duotone"}),
        ("ri", "cat-fill", {"icons_lt_filled"}),
        ("streamline-freehand-color", "cat", {"icons_lt_drawn"}),
        ("streamline-flex-color", "cat", {"icons_lt_colour"}),
        ("lucide", "bottle-filler", set()),
    ],
)
def test_styles_are_told_by_set_and_icon_name(prefix: str, icon: str, expected: set[str]) -> None:
    assert {style.name for style in styles.STYLES if style.has(prefix, icon)} == expected
