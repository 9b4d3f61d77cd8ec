"""Groups icon sets that are forks or versions of one design, so that a drawing cannot be on both sides of the split.

1. By name and author: `RELATED` lists sets known to be versions of one design.
2. By their drawings: for two sets with at least `MIN_SHARED` concepts in common, the share of those concepts of which
   some drawing of one is within `CLOSE` bits of a drawing of the other. At `MIN_SHARE` or more they are one family.

Both are joined by one union-find, so that forks of forks are in one family. A family has the name of its largest set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tools.icons.hashing import distances

CLOSE = 4
MIN_SHARED = 15
MIN_SHARE = 0.40

RELATED: tuple[str, ...] = (
    "material-symbols material-symbols-light ic mdi mdi-light memory zmdi eos-icons",
    "fa fa-solid fa-regular fa6-solid fa6-regular fa7-solid fa7-regular la",
    "heroicons heroicons-outline heroicons-solid sidekickicons",
    "bx bxs boxicons",
    "icon-park icon-park-outline icon-park-solid icon-park-twotone",
    "fluent fluent-color fluent-mdl2",
    "fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast",
    "feather lucide lucide-lab vadivam mynaui",
    "ion famicons",
    "mi mono-icons",
    "pepicons pepicons-pop pepicons-print pepicons-pencil",
    "uil uim uis uit",
    "noto noto-v1",
    "emojione emojione-monotone twemoji",
    "maki temaki pinhead roentgen osmic",
    "glyphs glyphs-poly",
    "icons8 wpf",
    "streamline streamline-color",
    "streamline-flex streamline-flex-color",
    "streamline-plump streamline-plump-color",
    "streamline-sharp streamline-sharp-color",
    "streamline-cyber streamline-cyber-color",
    "streamline-freehand streamline-freehand-color",
    "streamline-ultimate streamline-ultimate-color covid",
    "guidance streamline-guidance",
    "basil bubbles",
    "codicon vscode-icons",
)


class UnionFind:
    """Disjoint sets of strings."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, item: str) -> str:
        """The representative of the item's set; an unknown item is its own set."""
        self._parent.setdefault(item, item)
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def union(self, left: str, right: str) -> None:
        """Joins the sets of two items."""
        low, high = sorted((self.find(left), self.find(right)))
        self._parent[high] = low


def fork_shares(sets: Sequence[str], concepts: Sequence[str], hashes: np.ndarray) -> dict[tuple[str, str], float]:
    """For any two sets with enough concepts in common, the share of those concepts whose drawings are nearly alike."""
    by_concept: defaultdict[str, list[int]] = defaultdict(list)
    for row, concept in enumerate(concepts):
        by_concept[concept].append(row)
    common: defaultdict[tuple[str, str], int] = defaultdict(int)
    alike: defaultdict[tuple[str, str], int] = defaultdict(int)
    for rows in by_concept.values():
        owners = np.array([sets[row] for row in rows])
        present = sorted(set(owners))
        near = distances(hashes[rows][:, None], hashes[rows][None]) <= CLOSE
        left, right = np.nonzero(near)
        matching = {(str(a), str(b)) for a, b in zip(owners[left], owners[right], strict=True) if a < b}
        for i, a in enumerate(present):
            for b in present[i + 1 :]:
                common[a, b] += 1
        for pair in matching:
            alike[pair] += 1
    return {pair: alike[pair] / count for pair, count in sorted(common.items()) if count >= MIN_SHARED}


def group(sizes: Mapping[str, int], shares: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """The family of every set; `sizes` are icons per set, `shares` comes from `fork_shares`."""
    joined = UnionFind()
    for line in RELATED:
        first, *rest = line.split()
        for other in rest:
            joined.union(first, other)
    for (left, right), share in shares.items():
        if share >= MIN_SHARE:
            joined.union(left, right)
    members: defaultdict[str, list[str]] = defaultdict(list)
    for prefix in sorted(sizes):
        members[joined.find(prefix)].append(prefix)
    return {prefix: max(prefixes, key=lambda name: sizes[name]) for prefixes in members.values() for prefix in prefixes}
