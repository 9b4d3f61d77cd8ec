"""All drawings with their concepts, pixels and families, from which every embedded dataset and the corpus are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.icons import names as naming
from tools.icons.copies import Looks, looks
from tools.icons.families import MIN_SHARE, fork_shares, group
from tools.icons.hashing import perceptual_hash
from tools.icons.render import nearly_blank, quantise, render_all
from tools.icons.source import Drawing, IconSet, brand_names, read_sets
from tools.icons.split import choose_families


@dataclass(frozen=True)
class Pool:
    """The drawings of the package, in the order of their sets and names.

    Args:
        sets: the icon sets in use.
        drawings: (N) the drawings.
        concepts: (N) what each one shows; "" for one that is not used.
        spelling: the spelling in use, for every concept of a name.
        images: (N, 32, 32, 3) uint8, with 16 levels per channel.
        hashes: (N, 2) uint64 perceptual hashes.
        looks: (N) what near-duplicates of `imbalance-vlm data verify` are found by.
        family: the family of each set, by its prefix.
        links: the pairs of sets that are one family because of their drawings, for the report.
        family_of: (N,) row in `families`.
        families: their names, in alphabetical order.
        vocabulary: the concepts that can be classes, in alphabetical order.
        concept_of: (N,) row in `vocabulary`, -1 for none.
        downstream: (N,) whether a drawing's family is for datasets; all others are for pre-training.
    """

    sets: list[IconSet]
    drawings: list[Drawing]
    concepts: list[str]
    spelling: Mapping[str, str]
    images: np.ndarray
    hashes: np.ndarray
    looks: Looks
    family: Mapping[str, str]
    links: list[str]
    family_of: np.ndarray
    families: list[str]
    vocabulary: list[str]
    concept_of: np.ndarray
    downstream: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(N,) whether a drawing shows a concept."""
        return np.array([bool(concept) for concept in self.concepts])

    def counts_of_sets(self, rows: np.ndarray) -> Counter[str]:
        """How many of these drawings each set has."""
        return Counter(self.drawings[row].set for row in rows)


def read_pool(package: Path, processes: int) -> Pool:
    """Read, name, render and group the drawings of an unpacked package."""
    read = read_sets(package)
    sets, drawings = [icon_set for icon_set, _ in read], [drawing for _, of_set in read for drawing in of_set]
    set_of = np.repeat(np.arange(len(read)), [len(of_set) for _, of_set in read])
    concepts, spelling = name_drawings(read, naming.brands(brand_names(package)))
    images = quantise(render_all(drawings, processes))
    usable = np.array([bool(concept) for concept in concepts]) & ~nearly_blank(images)
    concepts = [concept if good else "" for concept, good in zip(concepts, usable, strict=True)]
    hashes = perceptual_hash(images)
    prefixes = [icon_set.prefix for icon_set in sets]
    named = np.flatnonzero(usable)
    shares = fork_shares([prefixes[set_of[row]] for row in named], [concepts[row] for row in named], hashes[named])
    family = group({prefix: len(of_set) for prefix, (_, of_set) in zip(prefixes, read, strict=True)}, shares)
    families = sorted(set(family.values()))
    family_of = np.array([families.index(family[prefix]) for prefix in prefixes])[set_of]
    vocabulary = sorted({concept for concept in concepts if naming.is_concept(concept)})
    row_of = {concept: row for row, concept in enumerate(vocabulary)}
    concept_of = np.array([row_of.get(concept, -1) for concept in concepts])
    return Pool(
        sets=sets,
        drawings=drawings,
        concepts=concepts,
        spelling=spelling,
        images=images,
        hashes=hashes,
        looks=looks(images),
        family=family,
        links=[f"{a} ~ {b}: {share:.0%}" for (a, b), share in shares.items() if share >= MIN_SHARE],
        family_of=family_of,
        families=families,
        vocabulary=vocabulary,
        concept_of=concept_of,
        downstream=np.isin(family_of, sorted(choose_families(family_of[usable], concept_of[usable]))),
    )


def name_drawings(
    sets: list[tuple[IconSet, list[Drawing]]], brands: frozenset[str]
) -> tuple[list[str], Mapping[str, str]]:
    """The concept of every drawing in order, and the spelling in use for the concept of every name.

    A concept is "" where the name says that the drawing shows a brand or a variant.
    """
    names = []
    for icon_set, drawings in sets:
        concepts = naming.set_names(icon_set, [drawing.name for drawing in drawings])
        names += [concepts.get(drawing.name, "") for drawing in drawings]
    spelling = naming.merge_spellings(Counter(concept for concept in names if concept))
    merged = [spelling.get(concept, "") for concept in names]
    return ["" if concept in brands else concept for concept in merged], spelling
