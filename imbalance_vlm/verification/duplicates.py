"""Images that occur more than once: by equal bytes, and by near perceptual hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.progress import bar
from imbalance_vlm.verification.batch_inspection import load_image
from imbalance_vlm.verification.collection import Collection, ListedImage
from imbalance_vlm.verification.findings import Finding
from imbalance_vlm.verification.inspection import Inspection, grey_values

BITS = 128
NEAR = 12
"""Bits of 128 in which the hashes of nearly equal images may differ. JPEG copies of photographs of 32 x 32 pixels
differ in 4 at the median and 8 at the 90th percentile at quality 60, in 7 and 14 at quality 30. Higher values find more
and take longer: on CIFAR-10-LT, 7 bits find 39 pairs, 12 find 81 and 18 find 142."""
ALIKE = 0.95
"""The lowest correlation of 16 x 16 grey values at which a pair with near hashes is reported. All of the 142 pairs on
CIFAR-10-LT look the same to a human."""
MOST_CONFIRMED = 50_000
"""The most pairs whose grey values are compared."""
MOST_COMPARED = 4_000_000_000
"""The most pairs of hashes that are compared, which takes about a minute; of a larger dataset, the remaining
pairs are not compared."""
_BLOCK = 1 << 20


def groups_of(keys: Sequence[str]) -> list[list[int]]:
    """Rows that share a key, in order, for each key that occurs more than once; "" is not a key."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


@dataclass(frozen=True)
class Pairs:
    """Pairs of hashes, (P, 2), with the bits in which they differ, (P,); `complete` unless there were too many."""

    rows: NDArray[np.int64]
    distances: NDArray[np.int64]
    complete: bool = True


def near_pairs(hashes: NDArray[np.uint8], most: int) -> Pairs:
    """All pairs of different hashes that differ in at most `most` bits.

    Two hashes that differ in d bits agree in at least one of any d + 1 parts. So hashes are sorted by each of most + 1
    parts and compared only with those that share it, without an N x N table. The bits are assigned to the parts at
    random, because neighbouring bits mostly agree.

    Args:
        hashes: (N, 16) uint8, all different.
        most: 0 to 127.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)  # (N, 2)
    bits = np.unpackbits(hashes, axis=1)  # (N, 128)
    shuffled = np.random.default_rng(0).permutation(BITS)
    chunks: list[NDArray[np.int64]] = []
    compared = 0
    for part in np.array_split(shuffled, most + 1):
        keys = _numbers(bits[:, part])
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        ends = np.r_[starts[1:], len(ordered)]
        end_of = np.repeat(ends, ends - starts)  # (N,) end of the run of equal keys at each position
        places = np.arange(len(ordered))
        shift = 1
        while len(places := places[places + shift < end_of[places]]):
            compared += len(places)
            if compared > MOST_COMPARED:
                return _unique(chunks, words, complete=False)
            for block in np.array_split(places, len(places) // _BLOCK + 1):
                left, right = order[block], order[block + shift]
                distance = np.bitwise_count(words[left] ^ words[right]).sum(1)
                near = distance <= most
                if near.any():
                    chunks.append(np.stack([left[near], right[near]], 1))
            shift += 1
    return _unique(chunks, words, complete=True)


def _unique(chunks: list[NDArray[np.int64]], words: NDArray[np.uint64], complete: bool) -> Pairs:
    if not chunks:
        return Pairs(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), complete)
    pairs = np.unique(np.sort(np.concatenate(chunks), axis=1), axis=0)
    distances = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(1).astype(np.int64)
    return Pairs(pairs, distances, complete)


def _numbers(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) the first 64 of these bits as a number; the others are left to the comparison."""
    weights = np.uint64(1) << np.arange(min(bits.shape[1], 64), dtype=np.uint64)
    return (bits[:, : len(weights)].astype(np.uint64) * weights).sum(1, dtype=np.uint64)


# -- findings --------------------------------------------------------------------------------------------------------
def find_copies(
    collection: Collection, inspections: Sequence[Inspection], near: int
) -> tuple[list[Finding], list[str]]:
    """Findings for images that occur more than once, and notes on what was not compared.

    Args:
        collection: the images.
        inspections: of each image.
        near: bits in which the perceptual hashes of nearly equal images may differ; -1 leaves such pairs out.
    """
    findings, copies = _exact_copies(collection, inspections)
    if near < 0:
        return findings, ["nearly equal images were not searched for"]
    pairs, complete = _near_candidates(collection, inspections, copies, near)
    notes = [] if complete else ["so many images look alike that not all pairs were compared"]
    if len(pairs) > MOST_CONFIRMED:
        notes.append(f"of {len(pairs):,} pairs that look alike the nearest {MOST_CONFIRMED:,} are reported")
    return findings + _near_copies(collection, pairs[:MOST_CONFIRMED]), notes


def _exact_copies(collection: Collection, inspections: Sequence[Inspection]) -> tuple[list[Finding], set[int]]:
    """Findings for images of equal bytes, and the rows of all but the first of each."""
    findings: list[Finding] = []
    copies: set[int] = set()
    for group in groups_of(["" if inspection.problem else inspection.content for inspection in inspections]):
        first = collection.images[group[0]]
        for row in group[1:]:
            image = collection.images[row]
            copies.add(row)
            if image.split != first.split:
                kind = "leak"
            else:
                kind = "duplicate" if image.label == first.label else "label_conflict"
            details = [
                f"also in '{first.split}'" if kind == "leak" else "",
                _other_class(collection, image, first),
                "the same path, listed twice" if (image.container, image.name) == (first.container, first.name) else "",
            ]
            findings.append(collection.finding(image, kind, first.name, "; ".join(filter(None, details))))
    return findings, copies


def _near_copies(collection: Collection, pairs: Sequence[tuple[int, int, int]]) -> list[Finding]:
    """Findings for the pairs whose grey values agree, each image once per kind."""
    findings: list[Finding] = []
    reported: set[tuple[int, str]] = set()
    greys: dict[int, NDArray[np.float64] | None] = {}
    with bar(len(pairs), "compare", "pair") as progress:
        for earlier, later, distance in pairs:
            progress.update()
            image, first = collection.images[later], collection.images[earlier]
            kind = "near_leak" if image.split != first.split else "near_duplicate"
            if (later, kind) in reported or not _alike(collection.images, earlier, later, greys):
                continue
            reported.add((later, kind))
            details = [
                f"in '{first.split}'" if kind == "near_leak" else "",
                _other_class(collection, image, first),
                f"{distance} of 128 bits differ",
            ]
            findings.append(collection.finding(image, kind, first.name, "; ".join(filter(None, details))))
    return findings


def _other_class(collection: Collection, image: ListedImage, first: ListedImage) -> str:
    return "" if image.label == first.label else f"its copy is of class {collection.class_name(first)!r}"


def _near_candidates(
    collection: Collection, inspections: Sequence[Inspection], copies: set[int], near: int
) -> tuple[list[tuple[int, int, int]], bool]:
    """(earlier row, later row, bits) of the pairs with near hashes, the nearest first; and whether they are all."""
    rows_of: dict[str, list[int]] = {}
    for row, inspection in enumerate(inspections):
        if inspection.perceptual_hash and not inspection.problem and row not in copies:
            rows_of.setdefault(inspection.perceptual_hash, []).append(row)
    candidates = [(rows[0], row, 0) for rows in rows_of.values() for row in rows[1:]]
    complete = True
    if near and len(rows_of) > 1:
        hashes = np.frombuffer(bytes.fromhex("".join(rows_of)), np.uint8).reshape(-1, 16)
        pairs = near_pairs(hashes, near)
        complete = pairs.complete
        # Of many images with equal hashes, the first of each split represents them.
        images = collection.images
        firsts = [list({images[row].split: row for row in reversed(rows)}.values()) for rows in rows_of.values()]
        for (left, right), distance in zip(pairs.rows.tolist(), pairs.distances.tolist(), strict=True):
            candidates += [(min(a, b), max(a, b), distance) for a in firsts[left] for b in firsts[right]]
    return sorted(candidates, key=lambda pair: (pair[2], pair[1], pair[0])), complete


def _alike(images: Sequence[ListedImage], left: int, right: int, greys: dict[int, NDArray[np.float64] | None]) -> bool:
    """Whether two images have nearly equal 16 x 16 grey values; true for one that cannot be read again."""
    for row in (left, right):
        if row not in greys:
            try:
                values = grey_values(load_image(images[row]), 16).ravel().astype(np.float64)
                centred = values - values.mean()
                greys[row] = centred / max(float(np.linalg.norm(centred)), 1e-9)
            except Exception:  # it was readable a moment ago, or came from a stream
                greys[row] = None
    first, second = greys[left], greys[right]
    return first is None or second is None or float(first @ second) >= ALIKE
