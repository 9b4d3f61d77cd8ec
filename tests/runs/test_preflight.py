"""All runs of a study are built before the first of them trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.result import StudyResult
from imbalance_vlm.runs import experiment
from imbalance_vlm.runs import preflight as preflight_module
from imbalance_vlm.runs.preflight import build_only, preflight
from imbalance_vlm.runs.resources import Resources
from tests.runs import running
from tests.runs.running import Recipe, run, weights

CPU = torch.device("cpu")
COOP = {"tuning": {"name": "prompt", "method": "coop", "views": 0}, "head": "text"}


def with_variants(recipe: Recipe, *changes: Recipe) -> Recipe:
    """A study of a linear probe, which trains, and then of each change of it."""
    variants = {"first": {}} | {f"variant{number}": change for number, change in enumerate(changes)}
    return recipe | {"grid": {"variants": variants}}


def run_study(recipe: Recipe, **options: Any) -> StudyResult:
    return running.run_study(recipe, "training.epochs=1", **options)


@pytest.fixture
def of_another_encoder(recipe: Recipe) -> Recipe:
    """Reuses the first pass of a run on other weights."""
    first = {"balancing.gradient": {"name": "subspace", "keep": 2, "rank": 1}, "training.epochs": 2}
    other = {"encoder": {"name": recipe["encoder"]["name"], "pretrained": "random"}}
    finished = run(recipe, changes=COOP | first | other, runs="elsewhere")
    return COOP | {"balancing.gradient": {"name": "subspace", "keep": 2, "rank": 1, "reuse": str(finished.path)}}


BAD = {
    "prompt longer than the context": (COOP | {"tuning.n_ctx": 60, "tuning.init": None}, "at most 16 tokens"),
    "n_ctx that contradicts the words": (
        COOP | {"tuning.n_ctx": 7, "tuning.init": "a photo of a"},
        r"`tuning\.n_ctx` must be left out or be the number of tokens of `tuning\.init`",
    ),
    "head that does not fit": ({"head": {"name": "decoder", "heads": 5}}, "`heads` must divide the width"),
    "guide without an adapter": (
        {"head": {"name": "prototype_guided", "init": "prototype"}},
        "`init` 'prototype' needs `adapter`",
    ),
    "correction for another number of classes": (
        {"balancing.post_hoc": {"name": "prior_shift", "target": [1, 2, 3]}},
        "`target` must hold 4 positive numbers",
    ),
    "missing validation images": ({"balancing.post_hoc": "logit_adjustment"}, "chooses a setting on validation images"),
    "mirrored test images": ({"data.flips": False, "evaluation.tta": "five_crops_flips"}, r"`evaluation\.tta` must be"),
    "groups that overlap": ({"evaluation.groups": {"many": 1, "few": 60}}, "`few` must not exceed `many`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_last_row_fails_before_the_first_run(name: str, recipe: Recipe, computed: list[str]) -> None:
    change, message = BAD[name]
    with pytest.raises(InputError, match=f"1 of 2 configurations cannot run; nothing was trained\n[\\s\\S]*{message}"):
        run_study(with_variants(recipe, change))
    assert computed == []
    assert not Path("runs").exists(), "nothing is written"


def test_prototypes_that_do_not_exist_fail_before_the_first_run(recipe: Recipe, computed: list[str]) -> None:
    """There is a simplex of at most 17 corners in 16 dimensions."""
    root = Path("many")
    for split in ("train", "test"):
        for label in range(20):
            (root / split / f"class {label}").mkdir(parents=True)
            Image.new("RGB", (16, 16), (10 * label, 0, 0)).save(root / split / f"class {label}" / "0.png")
    recipe["data"] = {"name": "folder", "root": str(root)}
    with pytest.raises(InputError, match="`kind` 'simplex' needs `num_classes` <= 17 in 16 dimensions, got 20"):
        run_study(with_variants(recipe, {"head": {"name": "prototype", "kind": "simplex"}}))
    assert computed == []


def test_weights_of_another_encoder_fail_before_the_first_run(
    recipe: Recipe, of_another_encoder: Recipe, computed: list[str]
) -> None:
    with pytest.raises(InputError, match=r"variant0: \S*head\.safetensors was trained on another base model"):
        run_study(with_variants(recipe, of_another_encoder))
    assert computed == []
    assert not Path("runs").exists()


@pytest.mark.parametrize("tested", ["novel", "transfer"])
def test_names_of_other_classes_that_are_too_long_fail_before_the_first_run(
    tested: str, recipe: Recipe, computed: list[str]
) -> None:
    """They are tested only after the training."""
    root = shutil.copytree(recipe["data"]["root"], "renamed")
    for split in ("train", "test"):
        folder = Path(root) / split / "white_cup"
        folder.rename(folder.with_name("white_cup_of_many_words_that_do_not_fit"))
    changes = {
        "novel": {"data.root": root, "data.classes": "base", "evaluation.base_to_novel": True},
        "transfer": {"evaluation.transfer": {"datasets": [{"name": "folder", "root": root}]}},
    }[tested]
    with pytest.raises(InputError, match="at most 16 tokens.*white cup of many words"):
        run_study(with_variants(recipe, COOP | changes | {"tuning.n_ctx": 6, "tuning.init": None}))
    assert computed == []


TEXT_READERS = {
    "zero-shot": {"tuning": "zero_shot", "head": "text"},
    "text as the start": {"head": {"name": "cosine", "init": "text"}},
    "prompts": COOP,
    "prototypes assigned by text": {"head": {"name": "prototype", "assign": "text"}},
    "geometry": {"evaluation.geometry": True},
    "another dataset": {"tuning": "zero_shot", "head": "text", "evaluation.transfer": {"datasets": []}},
}


@pytest.mark.parametrize("name", TEXT_READERS)
@pytest.mark.parametrize("study", [True, False])
def test_classes_that_the_tokenizer_reads_as_the_same_text_fail_before_training(
    name: str, study: bool, recipe: Recipe, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(recipe["data"]["root"], "renamed"))
    for split in ("train", "test"):
        (root / split / "white_cup").rename(root / split / "Red_Apple!")
        (root / split / "red_apple").rename(root / split / "red_apple!")
    renamed = {"name": "folder", "root": str(root)}
    changes = TEXT_READERS[name] | {"data": renamed}
    if name == "another dataset":
        changes = TEXT_READERS[name] | {"evaluation.transfer": {"datasets": [renamed]}}
    monkeypatch.setattr(experiment, "fit", lambda *_: pytest.fail("trains"))
    with pytest.raises(InputError, match=r"\('Red Apple!'\) and class . \('red apple!'\) as the same text"):
        run_study(with_variants(recipe, changes)) if study else run(recipe, changes=changes)
    assert (computed == []) == study


def test_problems_of_all_rows_are_reported_in_one_error(recipe: Recipe, computed: list[str]) -> None:
    """Equal ones once, and a configuration once, whatever the number of its seeds."""
    heads = BAD["head that does not fit"][0]
    study = with_variants(recipe, heads, BAD["prompt longer than the context"][0], heads | {"training.batch_size": 4})
    study["grid"]["seeds"] = [0, 1, 2]
    with pytest.raises(InputError) as error:
        run_study(study)
    first, *lines = str(error.value).splitlines()
    assert first == "3 of 4 configurations cannot run; nothing was trained"
    assert [line.partition(": ")[0] for line in lines] == ["  - tiny/variant0, tiny/variant2", "  - tiny/variant1"]
    assert computed == []


def test_problems_are_found_before_processes_are_started(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbalance_vlm.runs.study.ProcessPoolExecutor", lambda *_: pytest.fail("started processes"))
    with pytest.raises(InputError, match="1 of 2 configurations cannot run"):
        run_study(with_variants(recipe, BAD["head that does not fit"][0]), jobs=2)


def test_finished_runs_are_not_checked(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    study = with_variants(recipe, {"head": "cosine"})
    run_study(study)
    monkeypatch.setattr(preflight_module, "build_only", lambda *_: pytest.fail("built a finished run"))
    run_study(study)


# -- what the check leaves as it was ---------------------------------------------------------------------------------
TRAINS = (
    {"head": {"name": "decoder", "drop": 0.5}, "balancing.sampler": "class_balanced"},
    {"tuning": {"name": "peft", "method": "lora"}, "head": "cosine"},
    {"tuning": {"name": "prompt", "method": "maple", "views": 0}, "head": "text"},
)


def test_numbers_of_a_study_are_those_of_its_runs_one_by_one(recipe: Recipe) -> None:
    study = run_study(with_variants(recipe, *TRAINS), runs="study")
    for result in study.runs:
        complete = plan(result.path / "recipe.resolved.yaml").recipes[0]
        alone = run(complete, runs="alone")
        assert weights(alone) == weights(result)
        np.testing.assert_equal(alone.scores, result.scores)


def test_random_state_and_encoder_are_left_as_they_were(recipe: Recipe) -> None:
    resources = Resources()
    recipes = plan(with_variants(recipe, *TRAINS)).recipes
    encoder = resources.encoder(recipes[0]["encoder"], CPU)
    modules = [type(module) for module in encoder.module.modules()]
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    random_state = torch.get_rng_state()
    preflight(recipes, CPU, resources)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [type(module) for module in encoder.module.modules()] == modules
    after = encoder.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_no_image_is_opened(recipe: Recipe) -> None:
    resources = Resources()
    root = recipe["data"]["root"] = str(shutil.copytree(recipe["data"]["root"], "copy"))
    recipes = plan(with_variants(recipe, *TRAINS, {"head": {"name": "cosine", "init": "class_mean"}})).recipes
    for complete in recipes:
        resources.dataset(complete["data"])  # which opens each image once
    shutil.rmtree(root)
    for complete in recipes:
        build_only(complete, CPU, resources)
