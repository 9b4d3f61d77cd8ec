"""The problems of a recipe, collected and reported together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imbalance_vlm.errors import InputError


@dataclass(frozen=True)
class Problem:
    """One problem: the key, what is wrong and how to correct it, and the file."""

    key: str
    message: str
    source: str = ""

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


class RecipeError(InputError):
    """A recipe with one or more problems; `problems` lists them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))  # the runs of a study share the mistakes of their base
        count = len(self.problems)
        heading = "1 problem in the recipe" if count == 1 else f"{count} problems in the recipe"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))
