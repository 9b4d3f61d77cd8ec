"""The results of finished runs, read from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import read_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
_REMEDY = "remove it, or run again with --force"
_NUMBERS = dict[str, float | None]
_SHAPE = {
    "config": str,
    "seed": int,
    "identity": {"recipe": str, "encoder": str, "pretrained": str | None},
    "scores": _NUMBERS,
    "classes": dict[str, Any],
    "cost": _NUMBERS,
    "chosen": _NUMBERS | None,
    "paper": dict[str, float | str | None] | None,
}
"""The parts of a result that tables and predictions read."""
_COLUMN = {"name": str, "digits": int | None}


@dataclass(frozen=True, eq=False)
class RunResult:
    """One finished run: its folder and the content of its result.json."""

    path: Path
    record: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """Name and value of each score, in percent unless its evaluator says otherwise; NaN where it is undefined."""
        return {key: float("nan") if value is None else value for key, value in self.record["scores"].items()}

    @property
    def table(self) -> pd.DataFrame:
        """The table of this run, one row."""
        from imbalance_vlm.results.tables import table  # pandas takes a second to import

        return table([self])


@dataclass(frozen=True, eq=False)
class StudyResult:
    """The runs of a study, in the order of its grid, and their table."""

    path: Path
    runs: list[RunResult]
    table: pd.DataFrame

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """The scores of each row by its name, as means over the seeds."""
        from imbalance_vlm.results.tables import score_columns, table

        means = table(self.runs)
        scores = [column.name for column in score_columns(self.runs) if column.name in means.columns]
        return {
            str(name): dict(zip(scores, map(float, values), strict=True))
            for name, values in zip(means["recipe"], means[scores].to_numpy(), strict=True)
        }


def read_result(folder: Path) -> RunResult | None:
    """The finished run in `folder`, or None.

    Raises:
        InputError: a result.json that is damaged or of another schema.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    record = read_json(path, remedy=_REMEDY)
    if record.get("schema") != SCHEMA_VERSION:
        raise InputError(f"{path} must be a result of schema {SCHEMA_VERSION}; {_REMEDY}")
    shape = _SHAPE if record.get("columns") is None else _SHAPE | {"columns": [_COLUMN]}  # older results have none
    return RunResult(folder, read_json(path, shape, _REMEDY))


def find_results(places: list[Path]) -> list[RunResult]:
    """All finished runs below the given folders, sorted by path, each once.

    Raises:
        InputError: a place that does not exist, or no result in any of them.
    """
    folders: dict[Path, Path] = {}  # a run that is named twice counts once
    for place in places:
        if not place.exists():
            raise InputError(f"no such run or folder: {place}")
        files = [place] if place.is_file() else sorted(place.rglob("result.json"))
        for file in files:
            folders.setdefault(file.resolve().parent, file.parent)
    results = [result for folder in folders.values() if (result := read_result(folder))]
    if not results:
        raise InputError(f"no result.json below {', '.join(map(str, places))}; run a recipe first")
    return results
