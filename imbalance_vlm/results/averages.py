"""A study's rows averaged over one of its axes, such as the datasets that a method was run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from imbalance_vlm.evaluation.novel import average_h
from imbalance_vlm.results.columns import AVERAGES, COST, NOVEL, SCORES

AVERAGED = (*SCORES, *NOVEL, *COST)


def with_averages(frame: pd.DataFrame, places: Mapping[str, Mapping[str, Any]], axis: str) -> pd.DataFrame:
    """The table with an average below the rows that differ in nothing but `axis`.

    `h` of an average is H of the mean base and mean novel accuracy, `mean_of_h` the mean of H: papers print one or the
    other. `n` is the number of rows behind it. Rows of equal weight; without deviations.

    Args:
        frame: one row a configuration, with its name in `recipe`.
        places: where each row stands in the grid, as `imbalance_vlm.recipe.study.coordinates` says.
        axis: what is averaged over.
    """
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(frame["recipe"]):
        if name in places:  # published rows have no place
            others = [str(value) for key, value in places[name].items() if key != axis and value != ""]
            groups.setdefault("/".join(others), []).append(row)
    parts: list[pd.DataFrame] = []
    for rest, members in groups.items():
        own = frame.iloc[members]
        average: dict[str, Any] = {name: float(own[name].mean()) for name in AVERAGED if name in own.columns}
        average |= {"recipe": f"{rest}/average".lstrip("/"), "n": len(own), "seeds": "-"}
        if {"base", "novel"} <= set(own.columns):
            found = average_h(own[["base", "novel"]].to_dict("records"))  # type: ignore[arg-type]
            average |= {"h": found["h_of_means"], "mean_of_h": found["mean_of_h"]}
        parts += [own, pd.DataFrame([average])]
    rest_of_table = frame.iloc[[row for row in range(len(frame)) if not any(row in group for group in groups.values())]]
    merged = pd.concat([*parts, rest_of_table], ignore_index=True)
    columns = [*frame.columns, *(name for name in AVERAGES if name in merged.columns)]
    return merged.reindex(columns=columns).replace({None: np.nan})
