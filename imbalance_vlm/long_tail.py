"""The class counts of a training set and their groups: computed once and passed to what needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_vlm.errors import InputError

GROUPS = ("many", "medium", "few")


@dataclass(frozen=True, eq=False)
class LongTail:
    """Class counts of a training set and everything that follows from them.

    Args:
        counts: (C,) training images of each class.
        class_names: (C,) names, used in messages; the class index stands in for a missing name.
        many: classes with more training images than this are "many" (> 100 in ImageNet-LT's protocol).
        few: classes with fewer than this are "few" (< 20); those between, both ends included, are "medium".
        group_counts: (C,) counts that decide the groups in place of `counts`, such as those of the dataset before it
            was thinned.
        allow_empty: accept classes without a training image. They have prior 0 (log prior -inf): prior-based
            losses leave them out of the softmax, so that they neither get a gradient nor shift the others' priors.

    Raises:
        InputError: counts that are not one row of non-negative whole numbers, or a class without images.

    Source: the many/medium/few rule is that of Liu et al., "Large-Scale Long-Tailed Recognition in an Open World",
    CVPR 2019.

    >>> tail = LongTail([120, 30, 2])
    >>> tail.groups["few"].tolist(), round(float(tail.imbalance), 1)
    ([2], 60.0)
    """

    counts: NDArray[np.int64]
    class_names: Sequence[str] = field(default=(), repr=False)
    many: int = 100
    few: int = 20
    allow_empty: bool = False
    group_counts: NDArray[np.int64] | None = field(default=None, repr=False)

    def __init__(
        self,
        counts: ArrayLike,
        class_names: Sequence[str] = (),
        many: int = 100,
        few: int = 20,
        allow_empty: bool = False,
        group_counts: ArrayLike | None = None,
    ) -> None:
        array = _counts("counts", counts)
        if class_names and len(class_names) != array.size:
            raise InputError(f"`class_names` must name {array.size} classes, got {len(class_names)} names")
        if few > many + 1:
            raise InputError(f"`few` must not exceed `many` + 1, got few={few}, many={many}")
        object.__setattr__(self, "counts", array)
        object.__setattr__(self, "class_names", tuple(class_names))
        object.__setattr__(self, "many", many)
        object.__setattr__(self, "few", few)
        object.__setattr__(self, "allow_empty", allow_empty)
        groups = None if group_counts is None else _counts("group_counts", group_counts)
        if groups is not None and groups.shape != self.counts.shape:
            raise InputError(f"`group_counts` must be {self.counts.shape}, one for each class, got {groups.shape}")
        object.__setattr__(self, "group_counts", groups)
        empty = np.flatnonzero(self.counts == 0)
        if empty.size and not allow_empty:
            shown = ", ".join(f"{c} ({self.name_of(int(c))!r})" for c in empty[:5])
            more = f" and {empty.size - 5} more" if empty.size > 5 else ""
            raise InputError(
                f"`counts` must be positive for every class, got 0 for class {shown}{more}; "
                "add training images or pass allow_empty=true to leave the class out of every prior"
            )
        if self.counts.sum() == 0:
            raise InputError("`counts` must hold at least one training image, got none")

    @classmethod
    def of(cls, counts: LongTail | ArrayLike) -> LongTail:
        """`counts` itself when it is a LongTail already, else a LongTail with these counts."""
        return counts if isinstance(counts, LongTail) else cls(counts)

    def name_of(self, label: int) -> str:
        """The name of a class, or its index where classes have no names."""
        return self.class_names[label] if self.class_names else str(label)

    @property
    def num_classes(self) -> int:
        return int(self.counts.size)

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Class indices of each group, by training count: many > `many`, few < `few`, medium between."""
        counts = self.counts if self.group_counts is None else self.group_counts
        many, few = counts > self.many, counts < self.few
        masks = {"many": many, "medium": ~many & ~few, "few": few}
        return {group: np.flatnonzero(masks[group]) for group in GROUPS}

    @property
    def imbalance(self) -> float:
        """Largest over smallest non-zero count."""
        return float(self.counts.max() / self.counts[self.counts > 0].min())


def _counts(name: str, values: Any) -> NDArray[np.int64]:
    """(C,) counts from a sequence, an array, or a tensor of any type and device.

    Raises:
        InputError: no row of whole numbers from 0, or a tensor that holds no values.
    """
    if hasattr(values, "detach"):  # a tensor; this module does not import torch
        if values.device.type == "meta":
            raise InputError(f"`{name}` must hold numbers, got a tensor on the device 'meta', which holds none")
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"`{name}` must be one row of whole numbers >= 0, got {str(values)[:100]}") from error
    is_numeric = array.dtype.kind in "iuf" and bool(np.all(np.isfinite(array)))
    is_whole = is_numeric and bool(np.all(np.mod(array, 1) == 0)) and bool(np.all(array < 2**63))
    if array.ndim != 1 or array.size == 0 or not is_whole or array.min() < 0:
        lowest = f", lowest {array.min()}" if array.size and is_numeric else ""
        raise InputError(
            f"`{name}` must be one row of whole numbers >= 0, one for each class, got shape {array.shape}, "
            f"{array.dtype}{lowest}"
        )
    return array.astype(np.int64)
