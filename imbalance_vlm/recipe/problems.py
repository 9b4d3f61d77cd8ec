"""All that is wrong with a recipe, gathered and reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imbalance_vlm.errors import InputError


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is written, at which key, and what to do about it."""

    key: str
    message: str
    source: str = ""

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


class RecipeError(InputError):
    """A recipe with one or more problems; `problems` lists them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))  # a study repeats its base's mistakes: say each once
        count = len(self.problems)
        heading = "1 problem in the recipe" if count == 1 else f"{count} problems in the recipe"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))
