"""Equal and nearly equal hashes, against a comparison of every pair."""

from __future__ import annotations

import numpy as np
import pytest

from imbalance_vlm.verification import duplicates
from imbalance_vlm.verification.duplicates import groups_of, near_pairs


def hashes(seed: int, count: int, copies: int, flips: int) -> np.ndarray:
    """Random hashes, and copies of some with up to `flips` bits turned."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (count, 128), dtype=np.uint8)
    for _ in range(copies):
        copy = bits[rng.integers(len(bits))].copy()
        copy[rng.permutation(128)[: rng.integers(1, flips + 1)]] ^= 1
        bits = np.concatenate([bits, copy[None]])
    return np.unique(np.packbits(bits, axis=1), axis=0)


def compare_every_pair(given: np.ndarray, most: int) -> dict[tuple[int, int], int]:
    words = [int.from_bytes(row.tobytes(), "big") for row in given]
    result = {}
    for left in range(len(words)):
        for right in range(left + 1, len(words)):
            if (differ := (words[left] ^ words[right]).bit_count()) <= most:
                result[left, right] = differ
    return result


@pytest.mark.parametrize("most", [0, 1, 4, 12, 20])
def test_near_pairs_equal_those_of_comparing_every_pair(most: int) -> None:
    given = hashes(most, 150, 150, 16)
    result = near_pairs(given, most)
    assert result.complete
    pairs = {
        (left, right): near for (left, right), near in zip(result.rows.tolist(), result.distances.tolist(), strict=True)
    }
    assert pairs == compare_every_pair(given, most)
    assert bool(pairs) == (most > 0)


def test_too_many_pairs_are_reported_as_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 50)
    assert not near_pairs(hashes(0, 200, 0, 1), 12).complete


def test_groups_of_equal_keys() -> None:
    assert groups_of(["a", "b", "", "a", "", "c", "a"]) == [[0, 3, 6]]
