"""Rows against a baseline, seed by seed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from imbalance_vlm.errors import InputError
from imbalance_vlm.results.columns import COST, IDENTITY
from imbalance_vlm.results.comparison import compare
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import table

RUNS = {
    "s/base": [40.0, 41.0, 42.5],
    "s/better": [44.0, 44.5, 47.0],
    "s/noisy": [30.0, 52.0, 44.0],
    "s/equal": [40.0, 41.0, 42.5],
}


def results(overall: dict[str, list[float]]) -> list[RunResult]:
    runs = []
    for name, values in overall.items():
        for seed, value in enumerate(values):
            identity = dict.fromkeys(IDENTITY, "x") | {"recipe": name, "pretrain_pairs": None}
            scores = {"overall": value, "few": 1.0}
            record = {"config": name, "identity": identity, "seed": seed, "scores": scores}
            runs.append(RunResult(Path(), record | {"cost": {column.name: 2 for column in COST}}))
    return runs


def test_differences_and_corrected_p_values() -> None:
    """Against scipy's paired test and Holm's rule by hand: the smallest of two p-values counts twice."""
    runs = results(RUNS)
    frame = compare(table(runs), runs, "base").set_index("recipe")
    better, noisy = (float(ttest_rel(RUNS[name], RUNS["s/base"]).pvalue) for name in ("s/better", "s/noisy"))
    assert better < noisy
    assert frame.loc["s/better", "p_value"] == pytest.approx(2 * better)
    assert frame.loc["s/noisy", "p_value"] == pytest.approx(max(2 * better, noisy))
    assert frame.loc["s/noisy", "difference"] == pytest.approx(np.mean(RUNS["s/noisy"]) - np.mean(RUNS["s/base"]))
    assert frame.loc["s/equal", "difference"] == 0
    assert math.isnan(frame.loc["s/equal", "p_value"])
    assert math.isnan(frame.loc["s/base", "difference"])
    columns = list(frame.columns)
    assert columns[columns.index("overall") :][:4] == ["overall", "overall_std", "difference", "p_value"]


def test_one_seed_has_a_difference_and_no_p_value() -> None:
    runs = results({"s/base": [40.0], "s/other": [44.0]})
    frame = compare(table(runs), runs, "s/base").set_index("recipe")
    assert frame.loc["s/other", "difference"] == 4
    assert math.isnan(frame.loc["s/other", "p_value"])


def test_an_unknown_baseline_is_refused() -> None:
    runs = results(RUNS)
    with pytest.raises(InputError, match=r"`table.baseline`.*'bse'"):
        compare(table(runs), runs, "bse")
