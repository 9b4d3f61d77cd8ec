"""A study's rows averaged over one of its axes, such as the datasets that a method was run on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from imbalance_vlm.evaluation.base import Column, registered_columns
from imbalance_vlm.evaluation.metrics import base_novel_h
from imbalance_vlm.results.columns import AVERAGES, COST


def with_averages(
    frame: pd.DataFrame,
    places: Mapping[str, Mapping[str, Any]],
    axis: str,
    scores: Iterable[Column] | None = None,
) -> pd.DataFrame:
    """The table with an average below the rows that differ only in `axis`.

    `h` of an average is H of the mean base and mean novel accuracy, `mean_of_h` the mean of H: papers print one or the
    other. `n` is the number of rows that were averaged. All rows weigh the same; averages have no deviations.

    Args:
        frame: one row per configuration, with its name in `recipe`.
        places: the place of each row in the grid, as `imbalance_vlm.recipe.study.Plan.coordinates` gives it.
        axis: the axis to average over.
        scores: the columns of the runs' evaluators; None for those of the registered ones.
    """
    columns = (*(registered_columns() if scores is None else scores), *COST)
    averaged = [column.name for column in columns if column.name in frame.columns]
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(frame["recipe"]):
        if name in places:  # published rows have no place
            rest = [str(value) for key, value in places[name].items() if key != axis and value != ""]
            groups.setdefault("/".join(rest), []).append(row)
    parts: list[pd.DataFrame] = []
    for name, members in groups.items():
        group = frame.iloc[members]
        average: dict[str, Any] = {column: float(group[column].mean()) for column in averaged}
        average |= {"recipe": f"{name}/average".lstrip("/"), "n": len(group), "seeds": "-"}
        if {"base", "novel"} <= set(group.columns):
            both = average_h(group[["base", "novel"]].to_dict("records"))  # type: ignore[arg-type]
            average |= {"h": both["h_of_means"], "mean_of_h": both["mean_of_h"]}
        parts += [group, pd.DataFrame([average])]
    grouped = {row for members in groups.values() for row in members}
    rest_of_table = frame.iloc[[row for row in range(len(frame)) if row not in grouped]]
    merged = pd.concat([*parts, rest_of_table], ignore_index=True)
    names = [*frame.columns, *(column.name for column in AVERAGES if column.name in merged.columns)]
    return merged.reindex(columns=names).replace({None: np.nan})


def average_h(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Two averages of H over datasets: the mean of H, and H of the means of B and N.

    A row without both `base` and `novel` counts in neither.

    >>> average_h([{"base": 80.0, "novel": 80.0}, {"base": 90.0, "novel": 30.0}])
    {'mean_of_h': 62.5, 'h_of_means': 66.78571428571429}
    """
    pairs = [(row["base"], row["novel"]) for row in rows if not math.isnan(row["base"] + row["novel"])]
    if not pairs:
        return {"mean_of_h": math.nan, "h_of_means": math.nan}
    base, novel = np.array(pairs).T
    return {
        "mean_of_h": float(np.mean([base_novel_h(*pair) for pair in pairs])),
        "h_of_means": base_novel_h(float(base.mean()), float(novel.mean())),
    }
