"""Annotated types of settings: recipes are checked against them, and `show` prints their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` and `below` are strict, `at_least` and `at_most` are not."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        bounds = {">": self.above, ">=": self.at_least, "<": self.below, "<=": self.at_most}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)


@dataclass(frozen=True)
class Nested:
    """Marks a setting that is itself a list of components, given by the name of their registry."""

    registry: str


class ComputeOnly:
    """Marks a setting that affects how a result is computed, not what it is; it is left out of a run's identity."""


class FinishedRun:
    """Marks a setting that names the folder of a finished run with the same encoder, whose files are reused."""


NonNegative = Annotated[float, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(at_least=0, below=1)]  # a fraction that is less than the whole
Part = Annotated[float, Range(above=0, at_most=1)]  # a fraction that is not zero
Count = Annotated[int, Range(at_least=1)]
Natural = Annotated[int, Range(at_least=0)]
