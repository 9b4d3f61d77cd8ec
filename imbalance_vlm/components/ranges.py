"""Annotated types of settings: recipes are checked against them, and `show` prints their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from imbalance_vlm.values import Range


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
Percentage = Annotated[float, Range(at_least=0, at_most=100)]
Count = Annotated[int, Range(at_least=1)]
Natural = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]  # what all generators of random numbers take
