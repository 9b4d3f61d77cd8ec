"""The topical sets: classes from topics.yaml, drawings of the downstream families, and splits without near-duplicates.

No two splits of a set share a drawing or a near-duplicate of one, by the measure of `imbalance-vlm data verify`:
clusters of near-duplicates stay together. A cluster that holds a near-duplicate of any drawing of the pre-training
families is for training only, so that no tested drawing has nearly been seen before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from tools.icons.copies import Looks, alike, clusters_of
from tools.icons.pool import Pool
from tools.icons.split import Classes

FILE = Path(__file__).with_name("topics.yaml")
TEST_SHARE, MOST_TESTED, LEAST_TESTED = 0.3, 30, 2
VAL_SHARE, MOST_VALIDATED, LEAST_VALIDATED = 0.1, 8, 1
LEAST_TRAINED = 2
LEAST_FAMILIES = 2
FILLED_TEST = 10
TRAINED_SHARE = 0.75


@dataclass(frozen=True)
class Topic:
    """A topical set.

    Args:
        name: of the dataset.
        sentence: the template, with one `{}`.
        flips: whether a mirrored drawing still shows its class.
        concepts: the concepts of each class, by the class's name.
    """

    name: str
    sentence: str
    flips: bool
    concepts: Mapping[str, tuple[str, ...]]


def read_topics(file: Path = FILE) -> list[Topic]:
    """The topical sets of a file; a concept that two classes of a set claim is an error."""
    topics = []
    for name, described in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        concepts: dict[str, tuple[str, ...]] = {}
        for line in described["classes"].strip().splitlines():
            class_name, _, others = line.partition(":")
            words = [class_name.strip(), *(word.strip() for word in others.split(","))]
            concepts[words[0]] = tuple(word for word in words if word)
        times = Counter(word for words in concepts.values() for word in words)
        twice = sorted(word for word, count in times.items() if count > 1)
        if twice or len(concepts) != len(described["classes"].strip().splitlines()):
            raise ValueError(f"{file}, {name}: a concept must be of one class, got {twice or 'a class'} more than once")
        topics.append(Topic(name, described["sentence"], described["flips"], concepts))
    return topics


def members(topic: Topic, concepts: Sequence[str], spelling: Mapping[str, str], among: np.ndarray) -> np.ndarray:
    """(N,) the class of each drawing by its concept, in alphabetical order of the names; -1 for none.

    Args:
        topic: the set.
        concepts: (N,) of each drawing.
        spelling: the spelling that is used for each concept.
        among: (N,) the drawings that may be members.
    """
    label_of = {
        spelling.get(concept, concept): label
        for label, name in enumerate(sorted(topic.concepts))
        for concept in topic.concepts[name]
    }
    return np.array([label_of.get(concept, -1) if may else -1 for concept, may in zip(concepts, among, strict=True)])


def without_copies(labels: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(n,) whether to keep each image: the first of those with equal pixels, of the class that most of them have.

    Where no class has most of them, all are left out.
    """
    rows_of: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        rows_of[image.tobytes()].append(row)
    keep = np.zeros(len(labels), bool)
    for rows in rows_of.values():
        (label, most), *others = Counter(labels[rows].tolist()).most_common()
        if not others or others[0][1] < most:
            keep[next(row for row in rows if labels[row] == label)] = True
    return keep


def split(labels: np.ndarray, near: tuple[np.ndarray, np.ndarray], seen: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n,) "test", "val", "train" or "" (left out) for each image.

    Clusters of near-duplicates are placed whole and in a random order, as long as every class in them has room for
    them in a part. Classes that are still short of test or validation images take single images, those with the fewest
    near-duplicates first, whose near-duplicates are then left out.

    Args:
        labels: (n,) classes.
        near: the pairs of near-duplicates, in both directions.
        seen: (n,) whether a near-duplicate is among the drawings of pre-training; such images are for training.
        seed: of the order.
    """
    sizes = np.bincount(labels)
    room = {
        "test": np.clip(np.rint(TEST_SHARE * sizes), LEAST_TESTED, MOST_TESTED),
        "val": np.clip(np.rint(VAL_SHARE * sizes), LEAST_VALIDATED, MOST_VALIDATED),
    }
    parts = np.full(len(labels), "train", object)
    rng = np.random.default_rng(seed)
    clusters = clusters_of(len(labels), near)
    for number in rng.permutation(len(clusters)).tolist():
        rows = clusters[number]
        needed = np.bincount(labels[rows], minlength=len(sizes))
        for part, left in room.items():
            if not seen[rows].any() and (needed <= left).all():
                parts[rows] = part
                left -= needed
                break
    _fill(parts, labels, near, seen, rng.permutation(len(labels)))
    return parts


def _fill(
    parts: np.ndarray, labels: np.ndarray, near: tuple[np.ndarray, np.ndarray], seen: np.ndarray, lot: np.ndarray
) -> None:
    """Moves single training images to the parts that are short of their class, and leaves out their near-duplicates."""
    neighbours: defaultdict[int, list[int]] = defaultdict(list)
    for left, right in zip(near[0].tolist(), near[1].tolist(), strict=True):
        if left != right:
            neighbours[left].append(right)
    crowd = np.bincount(near[0], minlength=len(labels))
    for part, wanted in (("test", FILLED_TEST), ("val", LEAST_VALIDATED)):
        for row in np.lexsort((lot, crowd)).tolist():
            others = [other for other in neighbours[row] if parts[other] not in (part, "")]
            short = np.count_nonzero((parts == part) & (labels == labels[row])) < wanted
            if not short or seen[row] or parts[row] != "train" or any(parts[other] != "train" for other in others):
                continue
            lost = np.bincount(labels[[row, *others]], minlength=labels.max() + 1)
            trained = np.bincount(labels[parts == "train"], minlength=len(lost))
            if (trained - lost >= TRAINED_SHARE * trained)[lost > 0].all():
                parts[row] = part
                parts[others] = ""


def make_topic(
    topic: Topic, labels: np.ndarray, family_of: np.ndarray, images: np.ndarray, look: Looks, seen: np.ndarray
) -> Classes:
    """The classes of a topical set that have enough drawings by enough families, and their splits.

    Args:
        topic: the set.
        labels, family_of: (n,) of its drawings.
        images: (n, 32, 32, 3) the drawings.
        look: (n) what near-duplicates are found by.
        seen: (n,) whether pre-training has a near-duplicate.
    """
    rows = np.flatnonzero(without_copies(labels, images))
    while True:
        names, dense = np.unique(labels[rows], return_inverse=True)
        chosen = look.take(rows)
        parts = split(dense, alike(chosen, chosen), seen[rows])
        enough = np.ones(len(names), bool)
        for part, least in (("test", LEAST_TESTED), ("val", LEAST_VALIDATED), ("train", LEAST_TRAINED)):
            enough &= np.bincount(dense[parts == part], minlength=len(names)) >= least
        families = [len(np.unique(family_of[rows[dense == label]])) for label in range(len(names))]
        enough &= np.array(families) >= LEAST_FAMILIES
        if enough.all():
            break
        rows = rows[enough[dense]]
    order = np.argsort(dense, kind="stable")
    of_split = {part: order[parts[order] == part] for part in ("train", "val", "test")}
    every_name = sorted(topic.concepts)
    return Classes(
        tuple(every_name[label] for label in names),
        {part: rows[chosen] for part, chosen in of_split.items()},
        {part: dense[chosen] for part, chosen in of_split.items()},
    )


def make_topics(topics: Sequence[Topic], pool: Pool) -> dict[str, Classes]:
    """The classes of every topical set, whose rows are those of the pool."""
    among = pool.downstream & pool.usable
    labels_of = {topic.name: members(topic, pool.concepts, pool.spelling, among) for topic in topics}
    rows = np.flatnonzero(np.any([labels >= 0 for labels in labels_of.values()], axis=0))
    seen = np.zeros(len(pool.drawings), bool)
    seen[rows[alike(pool.looks.take(rows), pool.looks.take(~pool.downstream & pool.usable))[0]]] = True
    made = {}
    for topic in topics:
        own = np.flatnonzero(labels_of[topic.name] >= 0)
        labels, look = labels_of[topic.name][own], pool.looks.take(own)
        classes = make_topic(topic, labels, pool.family_of[own], pool.images[own], look, seen[own])
        made[topic.name] = Classes(classes.names, {part: own[r] for part, r in classes.rows.items()}, classes.labels)
    return made
