"""Tables are functions of result files."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Column, registered_columns
from imbalance_vlm.evaluation.base import columns_of as evaluator_columns
from imbalance_vlm.results.columns import COST, IDENTITY, SAMPLES, table_columns
from imbalance_vlm.results.result import RunResult, StudyResult
from imbalance_vlm.results.tables import columns_of, format_table, markdown, save_table, score_columns, select, table

PLAIN = evaluator_columns([{"name": "accuracy"}, {"name": "calibration"}])


def run(
    overall: float, seed: int = 0, config: str = "a", paper: dict[str, Any] | None = None, **more: Any
) -> RunResult:
    identity = dict.fromkeys(IDENTITY, "x") | {"recipe": config, "pretrain_pairs": None}
    scores = {column.name: 1.0 for column in PLAIN} | {"overall": overall, "few": None}
    cost = {column.name: 2 for column in COST}
    record = {"config": config, "identity": identity, "seed": seed, "scores": scores, "cost": cost, "paper": paper}
    return RunResult(Path(), record | more)


def test_seeds_become_mean_sample_deviation_and_number() -> None:
    (row,) = table([run(40.0, 0), run(44.0, 1), run(48.0, 2)]).to_dict("records")
    assert (row["overall"], row["overall_std"], row["n"], row["seeds"]) == (44.0, 4.0, 3, "0,1,2")
    assert math.isnan(row["few"])


def test_a_run_that_trained_nothing_has_no_seconds_of_training() -> None:
    nothing = {"trainable_parameters": 0, "encode_seconds": 0.0, "train_seconds": 0.0, "images_per_second": 0.0}
    text = markdown(select(table([run(1.0, cost=nothing)]), ["encode_seconds", "train_seconds", "images_per_second"]))
    assert text.splitlines()[2].split() == ["|", "0.0", "|", "-", "|", "-", "|"]
    corrected = nothing | {"train_seconds": 2.0}  # by a second stage
    assert table([run(1.0, cost=corrected)])["train_seconds"].tolist() == [2.0]


def test_columns_of_a_later_version_are_read_as_far_as_they_are_known() -> None:
    columns = [{"name": "overall", "digits": 3, "unit": "percent"}, {"name": "few", "digits": None}]
    assert [(c.name, c.digits) for c in score_columns([run(1.0, columns=columns)])] == [("overall", 3), ("few", 1)]


def test_configurations_that_look_alike_are_not_seeds_of_one() -> None:
    first, second = run(40.0), run(50.0)
    assert table([first, RunResult(Path(), {**second.record, "config": "b"})])["overall"].tolist() == [40.0, 50.0]


def test_columns_are_the_documented_ones_in_order() -> None:
    names = [column.name for column in PLAIN]
    cost = [column.name for column in COST]
    assert list(table([run(1.0)]).columns) == [*IDENTITY, "seeds", "n", *names, *cost]
    two_seeds = list(table([run(1.0), run(2.0, 1)]).columns)
    assert [name for name in two_seeds if name.endswith("_std")] == ["overall_std", "many_std", "medium_std", "few_std"]
    assert set(two_seeds) <= set(table_columns(PLAIN))


def test_every_column_of_a_table_is_listed_once() -> None:
    names = list(table_columns(registered_columns()))
    assert len(set(names)) == len(names)
    assert [names[names.index(SAMPLES) - 1], names[0], names[-1]] == ["pretrain_pairs", "recipe", COST[-1].name]
    assert {"overall_std", "h_std", "difference", "p_value", "mean_of_h", "chosen"} <= set(names)
    assert "nll_std" not in names


def test_a_published_row_stands_below_ours_and_is_marked() -> None:
    frame = table([run(40.0, paper={"source": "someone", "overall": 73.2})])
    assert frame["recipe"].tolist() == ["a", "a (paper)"]
    assert frame["overall"].tolist() == [40.0, 73.2]
    assert math.isnan(frame["many"].iloc[1])


def test_the_best_comes_first() -> None:
    frame = pd.DataFrame({"recipe": ["a", "b"], "overall": [1.0, 2.0], "nll": [1.0, 2.0], "train_seconds": [2.0, 1.0]})
    assert select(frame, None, "overall")["recipe"].tolist() == ["b", "a"]
    assert select(frame, None, "nll")["recipe"].tolist() == ["a", "b"]
    assert select(frame, None, "train_seconds")["recipe"].tolist() == ["b", "a"]


def test_an_unknown_column_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="'overal'.*Did you mean 'overall'"):
        select(table([run(1.0)]), ["overal"])


def test_markdown_shows_deviations_and_missing_numbers() -> None:
    shown = markdown(select(table([run(40.0, 0), run(44.0, 1)]), ["recipe", "overall", "few"]))
    assert shown.splitlines()[2] == "| a      | 42.0 ± 2.8 |   - |"


def test_digits_signs_and_thousands_are_those_of_the_columns() -> None:
    values = {"ece": 1.2345, "nll_few": 1.2345, "nc1": 0.1234, "effective_rank_text": 7.25, "difference": 1.0}
    numbers = {"n": 3, "trainable_parameters": 138574.0, "seconds": 2}
    row = markdown(pd.DataFrame([values | numbers])).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "1.2", "1.234", "0.123", "7.2", "+1.0", "3", "138,574", "2",
    ]  # fmt: skip


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
    chosen = [
        run(40.0, 0, chosen={"post_hoc.tau": 0.9}),
        run(44.0, 1, chosen={"post_hoc.tau": 1.25}),
        run(44.0, 0, config="b"),
    ]
    frame = table(chosen)
    assert frame["chosen"].tolist() == ["tau 0.9..1.25", ""]
    assert list(frame.columns[-len(COST) - 1 :]) == ["chosen", *(column.name for column in COST)]


def with_samples(samples: int | None, config: str, paper: dict[str, Any] | None = None) -> RunResult:
    result = run(1.0, config=config, paper=paper)
    identity = result.record["identity"] | {"pretrained": config, SAMPLES: samples}
    return RunResult(Path(), {**result.record, "identity": identity})


def test_samples_seen_stand_beside_the_pairs_where_a_result_holds_them() -> None:
    published = {"source": "someone", "overall": 63.3}
    frame = table([with_samples(12_800_000_000, "openai", published), with_samples(None, "webli")])
    assert list(frame[SAMPLES][:2]) == [12_800_000_000] * 2, "the published row is of the same model"
    assert frame[SAMPLES][2] is pd.NA
    assert list(frame.columns).index(SAMPLES) == list(frame.columns).index("pretrain_pairs") + 1
    assert "12,800,000,000" in markdown(select(frame, ["recipe", SAMPLES]))
    assert SAMPLES not in table([with_samples(None, "webli")]).columns


PLUG_IN = (
    *PLAIN,
    Column("regret", digits=4, smaller_is_better=True, deviation=True),
    Column("images_found", thousands=True),
)


def with_plug_in(regret: float, seed: int = 0, config: str = "a") -> RunResult:
    result = run(40.0, seed, config, columns=[asdict(column) for column in PLUG_IN])
    return RunResult(
        Path(), {**result.record, "scores": result.record["scores"] | {"regret": regret, "images_found": 1234}}
    )


def test_the_columns_of_an_unknown_evaluator_are_those_that_its_result_holds(tmp_path: Path) -> None:
    results = [with_plug_in(0.5), with_plug_in(0.25, 1), with_plug_in(0.1, config="b"), with_plug_in(0.1, 1, "b")]
    columns = columns_of(results)
    frame = select(table(results), ["recipe", "regret", "images_found"], "regret", columns)
    expected = ["| b      | 0.1000 ± 0.0000 |        1,234 |", "| a      | 0.3750 ± 0.1768 |        1,234 |"]
    assert markdown(frame, columns).splitlines()[2:] == expected
    assert "0.3750" in format_table(frame, "latex", columns)
    save_table(frame, tmp_path / "table.md", columns)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == markdown(frame, columns)
    assert StudyResult(tmp_path, results, frame).scores["a"]["regret"] == 0.375


def test_results_with_and_without_their_columns_go_into_one_table() -> None:
    """Those without are from before results held columns: of our own evaluators."""
    columns = score_columns([with_plug_in(0.5), run(1.0)])
    assert columns[: len(PLUG_IN)] == PLUG_IN
    assert {column.name for column in columns} == {column.name for column in (*registered_columns(), *PLUG_IN)}
    assert score_columns([run(1.0)]) == registered_columns()
    assert len(table([with_plug_in(0.5), run(1.0, config="b")])) == 2


def test_the_scores_of_a_study_are_means_over_the_seeds() -> None:
    runs = [run(40.0), run(44.0, 1), run(10.0, config="b")]
    scores = StudyResult(Path(), runs, pd.DataFrame()).scores
    assert (scores["a"]["overall"], scores["b"]["overall"]) == (42.0, 10.0)
    assert list(scores["a"]) == [column.name for column in PLAIN]
    assert math.isnan(scores["a"]["few"])
