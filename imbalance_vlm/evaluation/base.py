"""The interface of an evaluator, and the columns that it adds to a table.

This module imports neither torch nor data readers, so that tables can read columns without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from imbalance_vlm.data.dataset import Dataset
    from imbalance_vlm.encoders.sources import Source

ViewName = Literal["plain", "tta", "random"]


@dataclass(frozen=True)
class Column:
    """How a table shows and sorts one column.

    Args:
        name: of the score, and of the table's column.
        digits: decimal places.
        smaller_is_better: a sort from best to worst starts with the smallest value.
        deviation: whether to show the standard deviation over the seeds after the mean.
        thousands: whether it holds whole numbers, to show with thousands separators.
        sign: whether to show the sign of positive numbers too.
    """

    name: str
    digits: int = 1
    smaller_is_better: bool = False
    deviation: bool = False
    thousands: bool = False
    sign: bool = False


class SplitFeatures(Protocol):
    """The features of a dataset's splits, as a head reads them."""

    @property
    def data(self) -> Dataset: ...

    @property
    def device(self) -> torch.device: ...

    def of(self, split: str, view: ViewName = "plain") -> Source:
        """The features of a split, or its images where the head runs the image tower itself.

        Args:
            split: "train", "val" or "test".
            view: "plain" is the encoder's own view of each image, "tta" the views whose logits are averaged in the
                test pass. "random" is, of the training images, what the tuning trains on (the plain view where it does
                not augment); of other images, two random crops.
        """


class Evaluator:
    """Measures a trained model, and yields each result as (name, value).

    A subclass overrides the methods it needs. Its constructor takes from the run, by parameter name, any of
    `long_tail`, `head`, `features`, `novel_features`, `open_features`, `text`, `text_features` and `history`;
    keyword-only parameters are settings of the recipe. Undefined values are NaN.

    Attributes:
        columns: every score that it may yield, in order.
    """

    columns: ClassVar[tuple[Column, ...]] = ()

    @classmethod
    def columns_of(cls, settings: Mapping[str, Any]) -> tuple[Column, ...]:
        """The scores that it may yield under these settings, in order."""
        return cls.columns

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Receives a batch of the final model's test pass: for images with one label each, (B, C) and (B,)."""

    def compute(self) -> Iterator[tuple[str, float]]:
        """The scores, once the test pass is over; their names are among `columns_of`, in its order."""
        return iter(())

    def after_epoch(self, epoch: int, epochs: int) -> Iterator[tuple[str, float]]:
        """Numbers for the line of epoch `epoch` (1 to `epochs`) in metrics.jsonl."""
        return iter(())


def columns_of(sections: Iterable[Section]) -> tuple[Column, ...]:
    """The columns of the evaluators that a recipe names, in order."""
    return tuple(
        column
        for section in sections
        for column in catalogue.EVALUATORS.get(section["name"]).load().columns_of(section)  # type: ignore[attr-defined]
    )


def registered_columns() -> tuple[Column, ...]:
    """The columns of all registered evaluators, for tables of results that do not hold their own."""
    return tuple(column for entry in catalogue.EVALUATORS for column in entry.load().columns)  # type: ignore[attr-defined]
