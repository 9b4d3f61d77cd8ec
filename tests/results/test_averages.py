"""Averages over datasets: H of the means, and the mean of H."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from imbalance_vlm.evaluation.base import Column
from imbalance_vlm.results.averages import average_h, with_averages
from imbalance_vlm.results.tables import markdown

FRAME = pd.DataFrame(
    {
        "recipe": ["coop/pets", "coop/dtd", "maple/pets", "maple/dtd", "maple/dtd (paper)"],
        "n": [3, 3, 3, 3, 3],
        "base": [80.0, 90.0, 70.0, 72.0, 1.0],
        "base_std": [1.0, 1.0, 1.0, 1.0, 1.0],
        "novel": [80.0, 30.0, 60.0, 50.0, 1.0],
        "h": [80.0, 45.0, 64.6, 59.0, 1.0],
    }
)
PLACES = {
    f"{method}/{name}": {"variant": method, "data.name": name}
    for method in ("coop", "maple")
    for name in ("pets", "dtd")
}


def test_each_method_has_both_averages_below_its_rows() -> None:
    averaged = with_averages(FRAME, PLACES, "data.name")
    assert averaged["recipe"].tolist() == [
        "coop/pets", "coop/dtd", "coop/average", "maple/pets", "maple/dtd", "maple/average", "maple/dtd (paper)",
    ]  # fmt: skip
    row = averaged.set_index("recipe").loc["coop/average"]
    base, novel = (80 + 90) / 2, (80 + 30) / 2
    assert (row["n"], row["base"], row["novel"]) == (2, base, novel)
    assert row["h"] == pytest.approx(2 * base * novel / (base + novel))
    assert row["mean_of_h"] == pytest.approx((80 + 2 * 90 * 30 / 120) / 2)
    assert pd.isna(row["base_std"])
    assert averaged["mean_of_h"].notna().sum() == 2
    assert "66.8" in markdown(averaged)


def test_a_table_without_novel_classes_has_plain_means() -> None:
    averaged = with_averages(FRAME[["recipe", "n"]].assign(overall=[1.0, 3.0, 5.0, 7.0, 9.0]), PLACES, "data.name")
    assert averaged.set_index("recipe").loc["maple/average", "overall"] == 6
    assert "mean_of_h" not in averaged.columns


def test_both_averages_of_h() -> None:
    rows = [{"base": 82.0, "novel": 60.0}, {"base": 50.0, "novel": 90.0}, {"base": 70.0, "novel": math.nan}]
    each = [2 * r["base"] * r["novel"] / (r["base"] + r["novel"]) for r in rows[:2]]
    b, n = (82 + 50) / 2, (60 + 90) / 2
    assert average_h(rows) == pytest.approx({"mean_of_h": sum(each) / 2, "h_of_means": 2 * b * n / (b + n)})
    assert average_h(rows)["mean_of_h"] != pytest.approx(average_h(rows)["h_of_means"], rel=1e-3)
    assert all(math.isnan(value) for value in average_h([]).values())


def test_the_scores_of_any_evaluator_are_averaged() -> None:
    frame = FRAME[["recipe", "n"]].assign(regret=[1.0, 3.0, 5.0, 7.0, 9.0])
    averaged = with_averages(frame, PLACES, "data.name", [Column("regret")]).set_index("recipe")
    assert averaged.loc["coop/average", "regret"] == 2
