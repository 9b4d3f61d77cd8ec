"""The rows of a study compared with one of them, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.results.columns import COMPARISON
from imbalance_vlm.results.tables import Result, rows


def compare(frame: pd.DataFrame, results: Sequence[Result], baseline: str, score: str = "overall") -> pd.DataFrame:
    """The table with the mean difference of each row to `baseline`, in points, and the p-value of that difference.

    The test is Student's paired t over the seeds that both rows have, two-sided, with Holm's correction for the number
    of rows. It says whether another set of seeds would show the same sign, and nothing about other test images or
    other datasets. NaN for the baseline itself, for fewer than two seeds in common, and for rows that do not depend on
    the seed where the baseline does not either.

    Args:
        frame: one row per configuration, as `imbalance_vlm.results.tables.table` returns it.
        results: the runs of the table.
        baseline: the name of one of their recipes, or its end after the study's name.
        score: the score to compare.

    Raises:
        InputError: a baseline that is not a row of the table.
    """
    single = rows(results)
    names = list(dict.fromkeys(single["recipe"]))
    match = next((name for name in names if name == baseline or name.endswith(f"/{baseline}")), None)
    if match is None:
        raise InputError(
            f"`table.baseline` must be a row of the table, got {baseline!r}.{did_you_mean(baseline, names)}"
        )
    by_seed = {str(name): group.set_index("seed")[score] for name, group in single.groupby("recipe", sort=False)}
    tests = {name: _paired(values, by_seed[match]) for name, values in by_seed.items() if name != match}
    corrected = _holm({name: p for name, (_, p) in tests.items()})
    differences = {name: mean for name, (mean, _) in tests.items()}
    place = int(frame.columns.get_loc(score)) + (2 if f"{score}_std" in frame.columns else 1)  # type: ignore[arg-type]
    frame = frame.copy()
    for offset, (column, values) in enumerate(zip(COMPARISON, (differences, corrected), strict=True)):
        frame.insert(place + offset, column.name, frame["recipe"].map(values))
    return frame


def _paired(values: pd.Series, baseline: pd.Series) -> tuple[float, float]:
    """Mean difference over the seeds in common, and the p-value of the paired t-test."""
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]

    shared = values.index.intersection(baseline.index)
    differences = (values[shared] - baseline[shared]).to_numpy(dtype=float)
    mean = float(differences.mean()) if len(differences) else float("nan")
    if len(differences) < 2:
        return mean, float("nan")
    if np.ptp(differences) == 0:  # the same difference at every seed
        return mean, float("nan") if differences[0] == 0 else 0.0
    return mean, float(ttest_1samp(differences, 0.0).pvalue)


def _holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction; NaN does not count as a test."""
    ascending = sorted((p, name) for name, p in p_values.items() if not np.isnan(p))
    corrected, highest = dict.fromkeys(p_values, float("nan")), 0.0
    for rank, (p, name) in enumerate(ascending):
        highest = max(highest, min(1.0, p * (len(ascending) - rank)))
        corrected[name] = highest
    return corrected
