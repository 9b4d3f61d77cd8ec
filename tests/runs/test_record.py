"""What result.json and predictions.csv hold."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.tables import markdown
from imbalance_vlm.runs import record as record_module
from imbalance_vlm.runs.identity import config_hash
from imbalance_vlm.runs.record import balancing_words
from tests.runs.running import Recipe, run


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_result_is_strict_json_and_a_missing_score_is_nan(recipe: Recipe) -> None:
    result = run(recipe, "evaluation.groups={many: 100, few: 20}")
    record = json.loads((result.path / "result.json").read_text(), parse_constant=refuse_constant)
    assert record["scores"]["many"] is None
    assert math.isnan(result.scores["many"])
    assert math.isnan(result.table["many"][0])
    assert result.scores["medium"] >= 0
    assert record["classes"]["groups"] == {"many": 0, "medium": 1, "few": 3}
    assert " - " in markdown(result.table)


def test_result_names_its_parts_and_its_environment(recipe: Recipe) -> None:
    record = run(recipe).record
    assert record["schema"] == 1
    assert record["environment"]["packages"]["torch"]
    assert record["cost"]["trainable_parameters"] == 4 * 16 + 4
    assert record["identity"] | {"encoder": ""} == {
        "recipe": "tiny",
        "dataset": "colours",
        "encoder": "",
        "pretrained": record["identity"]["pretrained"],
        "pretrain_pairs": None,
        "samples_seen": None,
        "tuning": "linear_probe",
        "head": "linear",
        "balancing": "balanced_softmax",
    }


def test_result_holds_the_hashes_of_its_recipe(recipe: Recipe) -> None:
    result = run(recipe)
    (complete,) = plan(recipe).recipes
    assert result.record["config"] == config_hash(complete)[:16]
    assert result.path.name == f"seed0-{result.record['recipe_hash']}"


def test_predictions_agree_with_the_scores(recipe: Recipe) -> None:
    result = run(recipe, "training.epochs=20")
    with (result.path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert 100 * sum(row["label"] == row["predicted"] for row in rows) / len(rows) == result.scores["overall"]
    assert all((Path(recipe["data"]["root"]) / row["image"]).is_file() for row in rows)


def test_folder_removed_during_the_run_is_an_error(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json = record_module.write_json

    def remove_afterwards(path: Path, content: Any) -> None:
        write_json(path, content)
        shutil.rmtree(path.parent)

    monkeypatch.setattr(record_module, "write_json", remove_afterwards)
    with pytest.raises(InputError, match="was removed while the run was writing to it"):
        run(recipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "balanced_softmax"),
        ({"balancing.sampler": "class_balanced"}, "balanced_softmax + class_balanced sampling"),
        ({"balancing.second_stage": "crt"}, "balanced_softmax + crt"),
        (
            {"balancing.second_stage": "ncm", "balancing.post_hoc": {"name": "logit_adjustment", "tau": 1.0}},
            "balanced_softmax + ncm + post-hoc logit_adjustment",
        ),
        ({"tuning": "zero_shot", "head": "text"}, "none"),
        (
            {"tuning": "zero_shot", "head": "text", "balancing.post_hoc": {"name": "logit_adjustment", "tau": 1.0}},
            "post-hoc logit_adjustment",
        ),
    ],
    ids=["loss", "sampler", "second stage", "both corrections", "no training", "no training, corrected"],
)
def test_words_of_the_balancing(recipe: Recipe, changes: Recipe, words: str) -> None:
    (complete,) = plan(recipe, changes).recipes
    assert balancing_words(complete) == words


def test_words_mark_a_term_that_has_seen_the_novel_names(recipe: Recipe) -> None:
    changes = {
        "data.classes": "base",
        "tuning": {"name": "prompt", "method": "coop"},
        "head": "text",
        "balancing.regularizers": [{"name": "text_anchor", "names": "novel"}],
    }
    (complete,) = plan(recipe, changes).recipes
    assert balancing_words(complete).endswith("+ text_anchor (novel names: label-space transductive)")
