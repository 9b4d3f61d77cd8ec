"""From drawings with concepts and families to a pre-training corpus and a long-tailed classification set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.icons.hashing import near_pairs

MIN_IMAGES = 18
MIN_FAMILIES = 5
TEST_IMAGES = 10
VAL_IMAGES = 3
CLASSES = (500, 1100)
CORPUS_SHARE = (0.55, 0.64)
TRIES = 300
KNOWN_BY = 3  # families that draw a concept in the corpus, for the concept to count as known


@dataclass(frozen=True)
class Classes:
    """The classification set: names in alphabetical order, and rows and labels of each split."""

    names: tuple[str, ...]
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def choose_families(family_of: np.ndarray, concept_of: np.ndarray, seed: int = 0) -> frozenset[int]:
    """The families of the classification set; all others are for pre-training.

    Of `TRIES` random partitions that leave about 60 % of the drawings to pre-training, the one in which most concepts
    are both classes (enough drawings by enough families) and known to the corpus (drawn by `KNOWN_BY` of its families).

    Args:
        family_of: (N,) family of each drawing.
        concept_of: (N,) concept of each drawing, -1 for none.
        seed: of the partitions.
    """
    size = np.bincount(family_of)
    rng = np.random.default_rng(seed)
    best: tuple[int, frozenset[int]] = (-1, frozenset())
    for _ in range(TRIES):
        order = rng.permutation(len(size))
        chosen, total = [], 0
        for family in order:
            if total + size[family] <= 0.42 * len(family_of):
                chosen.append(int(family))
                total += int(size[family])
        share = 1 - total / len(family_of)
        downstream = np.isin(family_of, chosen)
        classes = _enough(concept_of, family_of, downstream)
        known = _families_drawing(concept_of, family_of, ~downstream) >= KNOWN_BY
        score = int((classes & known).sum())
        if CORPUS_SHARE[0] <= share <= CORPUS_SHARE[1] and int(classes.sum()) <= CLASSES[1] and score > best[0]:
            best = score, frozenset(chosen)
    return best[1]


def _families_drawing(concept_of: np.ndarray, family_of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(concepts,) how many families draw each concept, among the drawings of a mask."""
    mask = among & (concept_of >= 0)
    families = int(family_of.max()) + 1
    pairs = np.unique(concept_of[mask].astype(np.int64) * families + family_of[mask])
    return np.bincount(pairs // families, minlength=int(concept_of.max()) + 1)


def _enough(concept_of: np.ndarray, family_of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(concepts,) whether a concept has the images and families of a class, among the drawings of a mask."""
    images = np.bincount(concept_of[among & (concept_of >= 0)], minlength=int(concept_of.max()) + 1)
    return (images >= MIN_IMAGES) & (_families_drawing(concept_of, family_of, among) >= MIN_FAMILIES)


def make_classes(
    names: Sequence[str],
    concept_of: np.ndarray,
    family_of: np.ndarray,
    hashes: np.ndarray,
    images: np.ndarray,
    among: np.ndarray,
    seed: int = 0,
) -> Classes:
    """Classes and their splits, in which no test image has a near-duplicate in training or validation.

    A class's test images are those with the fewest near-duplicates among all candidates (ties at random); every other
    near-duplicate of a test image is then left out. So no test drawing nearly equals a training drawing, and few
    drawings are lost; in return, test drawings are less typical than training drawings. A concept that is left with
    too few images or families is not a class.

    Args:
        names: (concepts,) names.
        concept_of, family_of, hashes: (N,) of each drawing.
        images: (N, 32, 32, 3) the drawings.
        among: (N,) the drawings of the downstream families.
        seed: draws the splits.
    """
    rows = np.flatnonzero(among & (concept_of >= 0) & _enough(concept_of, family_of, among)[concept_of])
    rows = _without_copies(rows, concept_of, images)
    left, right = near_pairs(hashes[rows], hashes[rows])
    crowd = np.bincount(left, minlength=len(rows))  # near-duplicates of each, itself included
    lot = np.random.default_rng(seed).permutation(len(rows))
    order = np.lexsort((lot, crowd, concept_of[rows]))
    place = _place_in_group(concept_of[rows][order])
    is_test = np.zeros(len(rows), bool)
    is_test[order[place < TEST_IMAGES]] = True
    near_test = np.zeros(len(rows), bool)
    near_test[right[is_test[left]]] = True
    groups: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    for concept in np.unique(concept_of[rows]):
        in_class = concept_of[rows] == concept
        test, rest = np.flatnonzero(in_class & is_test), np.flatnonzero(in_class & ~is_test & ~near_test)
        families = len(np.unique(family_of[rows[np.concatenate([test, rest])]]))
        if len(test) + len(rest) >= MIN_IMAGES and families >= MIN_FAMILIES:
            rest = rest[np.argsort(lot[rest])]
            groups.append((int(concept), rows[test], rows[rest[:VAL_IMAGES]], rows[rest[VAL_IMAGES:]]))
    groups.sort(key=lambda item: names[item[0]])
    parts = {
        "test": [test for _, test, _, _ in groups],
        "val": [val for _, _, val, _ in groups],
        "train": [train for _, _, _, train in groups],
    }
    return Classes(
        tuple(names[concept] for concept, *_ in groups),
        {split: np.concatenate([np.sort(rows) for rows in of_class]) for split, of_class in parts.items()},
        {split: np.repeat(np.arange(len(groups)), [len(r) for r in of_class]) for split, of_class in parts.items()},
    )


def _without_copies(rows: np.ndarray, concept_of: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The first of the rows of a concept that have the same pixels: the same drawing in two sets counts once."""
    seen: set[tuple[int, bytes]] = set()
    first = []
    for row in rows:
        key = int(concept_of[row]), hashlib.sha256(images[row].tobytes()).digest()
        if key not in seen:
            seen.add(key)
            first.append(row)
    return np.array(first)


def _place_in_group(groups: np.ndarray) -> np.ndarray:
    """(n,) running number of each entry within its run of equal values.

    >>> _place_in_group(np.array([4, 4, 7])).tolist()
    [0, 1, 0]
    """
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def corpus_rows(candidates: np.ndarray, hashes: np.ndarray, test_rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """The pre-training corpus in its fixed order: the candidates without near-duplicates of test images, shuffled.

    The first 1/27, 1/9 and 1/3 of it are the smaller corpora.
    """
    near, _ = near_pairs(hashes[candidates], hashes[test_rows])
    remaining = np.delete(candidates, np.unique(near))
    return remaining[np.random.default_rng(seed).permutation(len(remaining))]
