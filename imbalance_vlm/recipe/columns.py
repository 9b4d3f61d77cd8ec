"""The columns that tables of recipes' results can have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.evaluation.base import columns_of, registered_columns
from imbalance_vlm.results import columns


def evaluator_sections(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluators that a complete recipe's `evaluation` section names, in the order of the catalogue."""
    names = [name for name in catalogue.EVALUATORS.names() if name in evaluation]
    return [{"name": name, **evaluation[name]} for name in names]


def score_names() -> list[str]:
    """The names of all scores, in the order of the tables."""
    return [column.name for column in registered_columns()]


def table_columns(evaluations: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all columns that the table of a study can have.

    Args:
        evaluations: the `evaluation` sections of its complete recipes.
    """
    of_runs = [column for evaluation in evaluations for column in columns_of(evaluator_sections(evaluation))]
    return list(columns.table_columns([*registered_columns(), *of_runs]))
