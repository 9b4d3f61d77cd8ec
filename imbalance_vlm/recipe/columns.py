"""The columns that a recipe's results can have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.evaluation.base import Column
from imbalance_vlm.results import columns as result_columns


def score_columns(evaluation: Any = None) -> list[Column]:
    """The columns of every evaluator, with the settings of a recipe's `evaluation` section where it has any."""
    catalogue.load_plugins()
    columns: list[Column] = []
    for entry in catalogue.EVALUATORS:
        given = evaluation.get(entry.name) if isinstance(evaluation, Mapping) else None
        defaults = {
            name: setting.default
            for name, setting in entry.settings().items()
            if setting.default is not inspect.Parameter.empty
        }
        settings = defaults | (dict(given) if isinstance(given, Mapping) else {})
        columns += entry.load().columns_of(settings)  # type: ignore[attr-defined]  # an evaluator class
    return columns


def score_names(evaluation: Any = None) -> list[str]:
    """The names of all scores, in the order of the tables."""
    return [column.name for column in score_columns(evaluation)]


def table_columns(evaluation: Any = None) -> list[str]:
    """The names of all columns that the table of a study can have."""
    return list(result_columns.table_columns(score_columns(evaluation)))
