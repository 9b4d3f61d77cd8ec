"""The column `samples_seen` of a table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from imbalance_vlm.results.columns import COST, IDENTITY, SCORES
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import markdown, select, table


def _run(pretrained: str, paper: dict[str, Any] | None = None) -> RunResult:
    from pathlib import Path

    identity = dict.fromkeys(IDENTITY, pretrained) | {"encoder": "ViT-B-32", "pretrain_pairs": None}
    record = {"config": pretrained, "seed": 0, "identity": identity, "scores": dict.fromkeys(SCORES, 1.0)}
    return RunResult(Path(), record | {"cost": dict.fromkeys(COST, 1.0), "classes": {}, "paper": paper})


def test_a_table_has_the_column_where_anything_is_known() -> None:
    found = table([_run("openai", {"source": "x", "overall": 63.3}), _run("webli")])
    assert list(found["samples_seen"][:2]) == [12_800_000_000] * 2, "the published row is of the same model"
    assert found["samples_seen"][2] is pd.NA
    assert list(found.columns).index("samples_seen") == list(found.columns).index("pretrain_pairs") + 1
    shown = markdown(select(found, ["recipe", "samples_seen"]))
    assert "12,800,000,000" in shown
    assert "samples_seen" not in table([_run("webli")]).columns
