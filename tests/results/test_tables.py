"""Tables are functions of result files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imbalance_vlm.errors import InputError
from imbalance_vlm.results.columns import (
    AVERAGES,
    BEST,
    COLUMNS,
    COMPARISON,
    COST,
    GEOMETRY,
    IDENTITY,
    NOVEL,
    SAMPLES,
    SCORES,
    SPREADS,
)
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import format_table, markdown, save_table, select, table


def run(overall: float, seed: int = 0, config: str = "a", paper: dict[str, Any] | None = None) -> RunResult:
    identity = dict.fromkeys(IDENTITY, "x") | {"pretrain_pairs": None}
    scores = dict.fromkeys(SCORES, 1.0) | {"overall": overall, "few": None}
    record = {"config": config, "identity": identity, "seed": seed, "scores": scores, "cost": dict.fromkeys(COST, 2)}
    return RunResult(Path(), record | {"paper": paper})


def test_seeds_become_mean_sample_deviation_and_number() -> None:
    (row,) = table([run(40.0, 0), run(44.0, 1), run(48.0, 2)]).to_dict("records")
    assert (row["overall"], row["overall_std"], row["n"], row["seeds"]) == (44.0, 4.0, 3, "0,1,2")
    assert math.isnan(row["few"])


def test_configurations_that_look_alike_are_not_seeds_of_one() -> None:
    assert table([run(40.0, config="a"), run(50.0, config="b")])["overall"].tolist() == [40.0, 50.0]


def test_columns_are_the_documented_ones_in_order() -> None:
    others = {SAMPLES, *SPREADS, *COMPARISON, *NOVEL, *AVERAGES, *BEST, *GEOMETRY, "chosen"}
    assert set(table([run(1.0)]).columns) == set(COLUMNS) - others
    assert list(table([run(1.0)]).columns[:10]) == [*IDENTITY, "seeds", "n"]


def test_a_published_row_stands_below_ours_and_is_marked() -> None:
    frame = table([run(40.0, paper={"source": "someone", "overall": 73.2})])
    assert frame["recipe"].tolist() == ["x", "x (paper)"]
    assert frame["overall"].tolist() == [40.0, 73.2]
    assert math.isnan(frame["many"].iloc[1])


def test_the_best_comes_first() -> None:
    frame = pd.DataFrame({"recipe": ["a", "b"], "overall": [1.0, 2.0], "nll": [1.0, 2.0]})
    assert select(frame, None, "overall")["recipe"].tolist() == ["b", "a"]
    assert select(frame, None, "nll")["recipe"].tolist() == ["a", "b"]


def test_markdown_shows_deviations_and_missing_numbers() -> None:
    shown = markdown(select(table([run(40.0, 0), run(44.0, 1)]), ["recipe", "overall", "few"]))
    assert shown.splitlines()[2] == "| x      | 42.0 ± 2.8 |   - |"


def test_latex_escapes() -> None:
    assert r"macro\_f1" in format_table(table([run(1.0)]), "latex")


def test_parquet_round_trip_or_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"overall": [1.0]})

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    with pytest.raises(InputError, match="pip install 'imbalance_vlm\\[parquet\\]'"):
        save_table(frame, tmp_path / "t.parquet")
    assert not list(tmp_path.glob("*.parquet*"))


def test_what_the_seeds_chose_stands_before_the_cost() -> None:
    chosen = [run(40.0, 0), run(44.0, 1), run(44.0, 0, config="b")]
    chosen[0].record["chosen"] = {"post_hoc.tau": 0.9}  # type: ignore[index]
    chosen[1].record["chosen"] = {"post_hoc.tau": 1.25}  # type: ignore[index]
    frame = table(chosen)
    assert frame["chosen"].tolist() == ["tau 0.9..1.25", ""]
    assert list(frame.columns[-len(COST) - 1 :]) == ["chosen", *COST]
