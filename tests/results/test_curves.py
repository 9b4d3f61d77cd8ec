"""Scores over the epochs of a study, averaged over the seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Column
from imbalance_vlm.results.curves import curves
from imbalance_vlm.results.result import RunResult
from tests.results.test_tables import run


def with_history(folder: Path, rows: list[dict[str, Any]], seed: int, **more: Any) -> RunResult:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunResult(folder, run(1.0, seed, "study/coop", **more).record)


def test_epochs_are_averaged_over_the_seeds(tmp_path: Path) -> None:
    runs = [
        with_history(
            tmp_path / str(seed),
            [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 1.0, "base": base, "novel": 20.0, "h": base / 2}],
            seed,
        )
        for seed, base in enumerate((40.0, 44.0))
    ]
    frame = curves(runs)
    assert list(frame.columns) == ["recipe", "epoch", "base", "novel", "h", "base_std", "novel_std", "h_std"]
    (row,) = frame.to_dict("records")
    assert (row["recipe"], row["epoch"], row["base"], row["novel"], row["h"]) == ("coop", 2, 42.0, 20.0, 21.0)
    assert row["base_std"] == pytest.approx(8**0.5)


def test_the_scores_of_any_evaluator_make_a_curve(tmp_path: Path) -> None:
    columns = [asdict(Column("regret"))]
    result = with_history(tmp_path / "run", [{"epoch": 3, "loss": 1.0, "regret": 0.5}], 0, columns=columns)
    assert curves([result])[["epoch", "regret"]].to_numpy().tolist() == [[3, 0.5]]


def test_runs_without_a_curve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation\.base_to_novel\.curve"):
        curves([with_history(tmp_path / "run", [{"epoch": 1, "loss": 1.0}], 0), run(1.0)])


def test_a_damaged_history_is_refused_and_a_missing_score_is_left_out(tmp_path: Path) -> None:
    result = with_history(tmp_path / "a", [{"epoch": 1, "h": None, "base": 1.0}], 0)
    assert list(curves([result]).columns) == ["recipe", "epoch", "base", "base_std"]
    (tmp_path / "a" / "metrics.jsonl").write_text('{"h": 1.0}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl must hold epoch, and has no 'epoch'; run again with --force"):
        curves([result])
