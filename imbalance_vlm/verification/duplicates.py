"""Images that are there more than once: equal bytes, and equal looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITS = 128
MOST_COMPARED = 4_000_000_000
"""Pairs of hashes that are compared at most, which takes about a minute; of a set with more, the rest is not."""
_BLOCK = 1 << 20


def groups_of(keys: Sequence[str]) -> list[list[int]]:
    """Rows that share a key, in order, for the keys that come twice; "" is no key."""
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

    Two hashes that differ in d bits agree in one of any d + 1 parts of them. So hashes are sorted by each of most + 1
    parts, and compared only with those that share it: no N x N table. The bits are dealt to the parts at random, as
    neighbouring ones mostly agree.

    Args:
        hashes: (N, 16) uint8, all different.
        most: 0 to 127.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)  # (N, 2)
    bits = np.unpackbits(hashes, axis=1)  # (N, 128)
    dealt = np.random.default_rng(0).permutation(BITS)
    found: list[NDArray[np.int64]] = []
    compared = 0
    for part in np.array_split(dealt, most + 1):
        keys = _numbers(bits[:, part])
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        ends = np.r_[starts[1:], len(ordered)]
        end_of = np.repeat(ends, ends - starts)  # (N,) where the run of each place ends
        places = np.arange(len(ordered))
        shift = 1
        while len(places := places[places + shift < end_of[places]]):
            compared += len(places)
            if compared > MOST_COMPARED:
                return _unique(found, words, complete=False)
            for block in np.array_split(places, len(places) // _BLOCK + 1):
                left, right = order[block], order[block + shift]
                distance = np.bitwise_count(words[left] ^ words[right]).sum(1)
                near = distance <= most
                if near.any():
                    found.append(np.stack([left[near], right[near]], 1))
            shift += 1
    return _unique(found, words, complete=True)


def _unique(found: list[NDArray[np.int64]], words: NDArray[np.uint64], complete: bool) -> Pairs:
    if not found:
        return Pairs(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), complete)
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    distances = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(1).astype(np.int64)
    return Pairs(pairs, distances, complete)


def _numbers(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) the first 64 of these bits as a number; where there are more, these have to be shared all the same."""
    weights = np.uint64(1) << np.arange(min(bits.shape[1], 64), dtype=np.uint64)
    return (bits[:, : len(weights)].astype(np.uint64) * weights).sum(1, dtype=np.uint64)
