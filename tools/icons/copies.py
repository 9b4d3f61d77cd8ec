"""Near-duplicates as `imbalance-vlm data verify` finds them: by near hashes whose small grey images correlate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from imbalance_vlm.verification.duplicates import ALIKE, NEAR
from imbalance_vlm.verification.inspection import grey_values, perceptual_hash
from tools.icons.hashing import near_pairs


@dataclass(frozen=True)
class Looks:
    """What near-duplicates are found by.

    Args:
        hashes: (N, 2) uint64; of a flat image, which is nobody's near-duplicate, all bits are 0.
        greys: (N, 256) float32, 16 x 16 grey values with mean 0 and norm 1.
        flat: (N,) whether an image has no hash.
    """

    hashes: np.ndarray
    greys: np.ndarray
    flat: np.ndarray

    def take(self, rows: np.ndarray) -> Looks:
        """The looks of these rows."""
        return Looks(self.hashes[rows], self.greys[rows], self.flat[rows])


def looks(images: np.ndarray) -> Looks:
    """The looks of (N, 32, 32, 3) uint8 images."""
    opened = [Image.fromarray(pixels) for pixels in images]
    texts = [perceptual_hash(image) for image in opened]
    hashes = np.frombuffer(bytes.fromhex("".join(text or "0" * 32 for text in texts)), ">u8").reshape(-1, 2)
    greys = np.stack([grey_values(image, 16).ravel() for image in opened]).astype(np.float32)
    greys -= greys.mean(axis=1, keepdims=True)
    greys /= np.maximum(np.linalg.norm(greys, axis=1, keepdims=True), 1e-9)
    return Looks(hashes.astype(np.uint64), greys, np.array([not text for text in texts]))


def alike(queries: Looks, pool: Looks) -> tuple[np.ndarray, np.ndarray]:
    """Every (query row, pool row) that are near-duplicates; with itself as pool, each row is paired with itself too."""
    left, right = near_pairs(queries.hashes, pool.hashes, NEAR)
    keep = ~queries.flat[left] & ~pool.flat[right]
    left, right = left[keep], right[keep]
    parts = np.array_split(np.arange(len(left)), len(left) // 100_000 + 1)
    correlation = [np.einsum("ij,ij->i", queries.greys[left[part]], pool.greys[right[part]]) for part in parts]
    keep = np.concatenate(correlation) >= ALIKE - 1e-4  # verify computes it in float64
    return left[keep], right[keep]


def clusters_of(count: int, near: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The rows of each cluster of `count` images: near-duplicates of near-duplicates are in one cluster."""
    graph = coo_array((np.ones(len(near[0]), bool), near), shape=(count, count))
    number, cluster_of = connected_components(graph, directed=False)
    order = np.argsort(cluster_of, kind="stable")
    return np.split(order, np.cumsum(np.bincount(cluster_of, minlength=number))[:-1])
