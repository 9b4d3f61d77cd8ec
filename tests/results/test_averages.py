"""Averages over datasets: H of the means, and the mean of H."""

from __future__ import annotations

import pandas as pd
import pytest

from imbalance_vlm.results.averages import with_averages
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
    found = with_averages(FRAME, PLACES, "data.name")
    assert found["recipe"].tolist() == [
        "coop/pets", "coop/dtd", "coop/average", "maple/pets", "maple/dtd", "maple/average", "maple/dtd (paper)",
    ]  # fmt: skip
    row = found.set_index("recipe").loc["coop/average"]
    base, novel = (80 + 90) / 2, (80 + 30) / 2
    assert (row["n"], row["base"], row["novel"]) == (2, base, novel)
    assert row["h"] == pytest.approx(2 * base * novel / (base + novel))
    assert row["mean_of_h"] == pytest.approx((80 + 2 * 90 * 30 / 120) / 2)
    assert pd.isna(row["base_std"])
    assert found["mean_of_h"].notna().sum() == 2
    assert "66.8" in markdown(found)


def test_a_table_without_novel_classes_has_plain_means() -> None:
    found = with_averages(FRAME[["recipe", "n"]].assign(overall=[1.0, 3.0, 5.0, 7.0, 9.0]), PLACES, "data.name")
    assert found.set_index("recipe").loc["maple/average", "overall"] == 6
    assert "mean_of_h" not in found.columns
