"""Scores over the epochs of a study's runs, read from metrics.jsonl and averaged over the seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import parse_json
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import score_columns


def curves(results: Sequence[RunResult]) -> pd.DataFrame:
    """One row per recipe and epoch: `recipe` (its last name), `epoch`, and each score with its `_std` over the seeds.

    It holds the epochs at which an evaluator recorded scores; runs without any are left out.

    Raises:
        InputError: no run has scores over its epochs.
    """
    names = [column.name for column in score_columns(results)]
    rows = []
    for result in results:
        history = result.path / "metrics.jsonl"
        for line in history.read_text(encoding="utf-8").splitlines() if history.is_file() else []:
            epoch = parse_json(line, history, {"epoch": int}, "run again with --force")
            if scores := {name: epoch[name] for name in names if epoch.get(name) is not None}:
                recipe = str(result.record["identity"]["recipe"]).rpartition("/")[2]
                rows.append({"recipe": recipe, "epoch": epoch["epoch"], **scores})
    if not rows:
        raise InputError(
            "a plot over epochs needs runs whose evaluators record scores during training, got none; set "
            "evaluation.base_to_novel.curve to 1 or more"
        )
    grouped = pd.DataFrame(rows).groupby(["recipe", "epoch"], sort=False)
    return grouped.mean().join(grouped.std(ddof=1).add_suffix("_std")).reset_index()
