"""Runs on every dataset in miniature, in its real layout: zero-shot, a linear probe, prompts and tuned towers.

By default the prompt and tower methods take turns over the datasets; with IMBALANCE_VLM_SLOW=1 every method runs on
every dataset.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import imbalance_vlm
from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.data.few_shot import VARIANTS
from imbalance_vlm.results.result import RunResult
from tests.data.miniatures import MINIATURES, file_states

DATASETS = list(MINIATURES)
TRAINED = [name for name in DATASETS if name not in VARIANTS]
PROMPTS = catalogue.PROMPTS.names()
TOWERS = [*catalogue.PEFT.names(), "full"]


def in_turn(methods: list[str]) -> list[tuple[str, str]]:
    """(dataset, method): all pairs in the slow tier, else each dataset and each method at least once."""
    if os.environ.get("IMBALANCE_VLM_SLOW"):
        return [(name, method) for name in TRAINED for method in methods]
    rows = max(len(TRAINED), len(methods))
    return [(TRAINED[row % len(TRAINED)], methods[row % len(methods)]) for row in range(rows)]


def run_miniature(name: str, folder: Path, clip: str, templates: str = "dataset", **sections: Any) -> RunResult:
    """A run of a recipe on a dataset in miniature, which must leave the data as they are."""
    recipe = {
        "name": "miniature",
        "data": MINIATURES[name](folder / "data") | {"templates": templates},
        "encoder": {"name": clip},
        "training": {"epochs": 1, "batch_size": 16},
    }
    before = file_states(folder / "data")
    result = imbalance_vlm.run(recipe | sections, device="cpu")
    assert isinstance(result, RunResult)
    assert 0 <= result.scores["overall"] <= 100
    assert result.record["identity"]["dataset"] in (name, "own", "animals", "shards")
    assert result.record["images"]["test"] > 0
    assert result.record["images"]["skipped"] == 0
    assert file_states(folder / "data") == before
    return result


@pytest.mark.parametrize("name", DATASETS)
def test_zero_shot(name: str, tmp_path: Path, tiny_clip: str) -> None:
    result = run_miniature(name, tmp_path, tiny_clip, tuning="zero_shot", head="text")
    assert result.record["cost"]["trainable_parameters"] == 0


@pytest.mark.parametrize("name", TRAINED)
def test_linear_probe(name: str, tmp_path: Path, tiny_clip: str) -> None:
    result = run_miniature(
        name, tmp_path, tiny_clip, tuning="linear_probe", head="linear", balancing={"loss": "balanced_softmax"}
    )
    classes = len(result.record["classes"]["names"])
    assert result.record["cost"]["trainable_parameters"] == (16 + 1) * classes
    assert sum(result.record["classes"]["train_counts"]) == result.record["images"]["train"]


@pytest.mark.parametrize(("name", "method"), in_turn(PROMPTS))
def test_prompt_methods(name: str, method: str, tmp_path: Path, tiny_clip: str) -> None:
    tuning = {"name": "prompt", "method": method, "views": 1}
    result = run_miniature(name, tmp_path, tiny_clip, "simple", tuning=tuning, head="text")
    assert result.record["identity"]["tuning"] == "prompt"
    assert result.record["cost"]["trainable_parameters"] > 0


@pytest.mark.parametrize(("name", "method"), in_turn(TOWERS))
def test_tuned_towers(name: str, method: str, tmp_path: Path, tiny_clip: str) -> None:
    result = run_miniature(
        name,
        tmp_path,
        tiny_clip,
        tuning={"name": "full"} if method == "full" else {"name": "peft", "method": method},
        head={"name": "cosine", "init": "text"},
        encoder={"name": tiny_clip, "features": "class_token"},
        balancing={"loss": "logit_adjustment"},
        training={"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01}},
    )
    head = 32 * len(result.record["classes"]["names"])
    assert result.record["cost"]["trainable_parameters"] > head


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("tuning", "head"),
    [
        ("linear_probe", "cosine"),
        ({"name": "prompt", "method": "coop"}, "text"),
        ({"name": "peft", "method": "lora"}, "cosine"),
    ],
    ids=["linear_probe", "prompt", "peft"],
)
def test_a_dataset_for_testing_only_is_not_trained_on(
    name: str, tuning: Any, head: str, tmp_path: Path, tiny_clip: str
) -> None:
    with pytest.raises(InputError, match="for testing only"):
        run_miniature(name, tmp_path, tiny_clip, tuning=tuning, head=head)
