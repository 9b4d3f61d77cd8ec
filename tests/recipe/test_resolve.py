"""The check of a recipe: everything wrong is reported at once, with file, key, allowed values and a suggestion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imbalance_vlm.recipe.load import load
from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.resolve import resolve
from imbalance_vlm.recipe.study import plan

BASE: dict[str, Any] = {
    "name": "r",
    "data": {"name": "folder", "root": "images"},
    "encoder": {"name": "ViT-B-16", "pretrained": "openai"},
    "tuning": "linear_probe",
}


def problems(overrides: dict[str, Any], base: dict[str, Any] = BASE) -> list[str]:
    with pytest.raises(RecipeError) as error:
        plan(base, overrides)
    return [str(problem) for problem in error.value.problems]


def one_problem(overrides: dict[str, Any], base: dict[str, Any] = BASE) -> str:
    (problem,) = problems(overrides, base)
    return problem


def test_every_default_is_filled_in() -> None:
    (recipe,) = plan(BASE).recipes
    assert recipe["head"] == {"name": "linear", "init": "random", "bias": True, "normalise": True, "adapter": 0}
    assert recipe["balancing"]["loss"]["name"] == "cross_entropy"
    assert recipe["training"]["optimizer"]["momentum"] == 0.9
    assert recipe["evaluation"]["groups"] == {"many": 100, "few": 20}
    assert recipe["seed"] == 0


def test_a_complete_recipe_is_a_recipe_again(tmp_path: Path) -> None:
    (recipe,) = plan(BASE).recipes
    path = tmp_path / "recipe.resolved.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert plan(path).recipes == [recipe]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"trainning": {}},
            ["trainning: unknown key", "Did you mean 'training'?", "Allowed: include, name,", "grid, table, plot"],
        ),
        ({"gird": {}}, ["gird: unknown key", "Did you mean 'grid'?"]),
        ({"training.epoch": 3}, ["training.epoch: unknown key", "'epochs'", "batch_size"]),
        ({"balancing.loss": {"name": "focal", "gama": 1}}, ["balancing.loss.gama: unknown key", "'gamma'"]),
        ({"training.clip_grad": 1.0}, ["training.clip_grad: unknown key", "'clip_grad_norm'"]),
        ({"balancing.second_stage": {"name": "tau_norm", "tua": 1}}, ["balancing.second_stage.tua", "'tau'"]),
        ({"data.rooot": "x"}, ["data.rooot", "Did you mean 'root'?"]),
        ({"tuning": {"name": "peft", "methd": "lora"}}, ["tuning.methd: unknown key", "Did you mean 'method'?"]),
    ],
)
def test_an_unknown_key(overrides: dict[str, Any], words: list[str]) -> None:
    problem = one_problem(overrides)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"balancing.loss": "focall"}, ["balancing.loss.name: unknown loss 'focall'", "'focal'", "Available: cross_"]),
        ({"tuning": "linear-probe"}, ["tuning.name: unknown tuning", "'linear_probe'"]),
        ({"head": "cosin"}, ["head.name: unknown head", "'cosine'"]),
        ({"data": "folders"}, ["data.name: unknown dataset", "'folder'"]),
        ({"training.optimizer": "sdg"}, ["training.optimizer.name: unknown optimizer 'sdg'", "'sgd'"]),
        ({"training.schedule": "cos"}, ["training.schedule.name: unknown schedule 'cos'"]),
        ({"balancing.sampler": "instances"}, ["balancing.sampler.name", "'instance'"]),
        ({"balancing.post_hoc": "temprature"}, ["balancing.post_hoc.name:", "Did you mean 'temperature'?"]),
        ({"tuning": 3}, ["tuning: must name one tuning, or be a mapping with `name`"]),
        ({"balancing.regularizers": 3}, ["balancing.regularizers: must be a list of regularizers"]),
        ({"balancing.regularizers": [{"weight": 1}]}, ["balancing.regularizers.0: must name one regularizer"]),
    ],
)
def test_an_unknown_name(overrides: dict[str, Any], words: list[str]) -> None:
    problem = one_problem(overrides)
    assert all(word in problem for word in words), problem


def test_a_regularizer_named_twice_is_refused() -> None:
    twice = {"head.adapter": 4, "balancing.regularizers": ["prototype_contrastive"] * 2}
    assert "must name each regularizer once, got 'prototype_contrastive' 2 times" in one_problem(twice)


def test_a_setting_without_a_name_is_for_the_default_component() -> None:
    (recipe,) = plan(BASE, {"training.optimizer.lr": 0.5}).recipes
    assert (recipe["training"]["optimizer"]["name"], recipe["training"]["optimizer"]["lr"]) == ("sgd", 0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epochs", "ten", "must be a whole number >= 1, got 'ten'"),
        ("training.epochs", 1.5, "must be a whole number >= 1, got 1.5"),
        ("training.epochs", True, "must be a whole number >= 1, got true"),
        ("training.epochs", 0, "must be a whole number >= 1, got 0"),
        ("training.epochs", None, "must be a whole number >= 1, got null"),
        ("training.clip_grad_norm", 0, "must be a number > 0 or null, got 0"),
        ("training.optimizer", {"name": "sgd", "lr": -1}, "must be a number > 0, got -1"),
        ("training.optimizer", {"name": "sgd", "lr": float("nan")}, "must be a number > 0, got nan"),
        ("training.optimizer", {"name": "sgd", "momentum": 1}, "must be a number >= 0 and < 1, got 1"),
        ("head", {"name": "linear", "bias": "yes"}, "must be true or false, got 'yes'"),
        ("head", {"name": "cosine", "init": "tekst"}, "Did you mean 'text'?"),
        ("seed", -1, "must be a whole number >= 0 and <= 4294967295, got -1"),
        ("name", 5, "must be a string, got 5"),
        ("data.on_error", "ignore", "must be 'raise' or 'skip', got 'ignore'"),
        ("data.templates", [1], "must be a string or a list of strings, got [1]"),
        ("evaluation.groups", {"meny": 10}, "unknown key. Did you mean 'many'?"),
        ("training", 5, "must be a mapping of keys, got 5"),
    ],
)
def test_a_wrong_value(key: str, value: Any, message: str) -> None:
    problem = one_problem({key: value})
    assert key in problem
    assert message in problem, problem


@pytest.mark.parametrize("key", ["data", "encoder", "tuning", "name", "data.root"])
def test_a_missing_key(key: str) -> None:
    base = {name: dict(value) if isinstance(value, dict) else value for name, value in BASE.items()}
    section, _, setting = key.partition(".")
    if setting:
        del base[section][setting]
    else:
        del base[section]
    (problem,) = problems({}, base)
    assert f"{key}: missing" in problem


def test_all_mistakes_are_reported_at_once_each_with_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("training: {epochs: many}\ndata: {name: folder, root: x}\nencoder: ViT-B-16")
    (tmp_path / "top.yaml").write_text("include: base.yaml\ntuning: linear_probe\nheads: linear")
    with pytest.raises(RecipeError) as error:
        resolve(load(tmp_path / "top.yaml", ["balancing.loss=focall"]))
    message = str(error.value)
    assert message.startswith("3 problems in the recipe\n")
    lines = {line.split(": ")[1]: line for line in message.splitlines()[1:]}
    assert "base.yaml: training.epochs" in lines["training.epochs"]
    assert "top.yaml: heads" in lines["heads"]
    assert "Did you mean 'head'?" in lines["heads"]
    assert "command line: balancing.loss.name" in lines["balancing.loss.name"]


def test_checking_reads_no_data_and_no_weights() -> None:
    """The folder of BASE does not exist, nor does this file."""
    assert plan(BASE, {"encoder.pretrained": "nowhere/weights.pt"}).recipes


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../b", "", "a//b", "."])
def test_a_name_stays_inside_the_runs_folder(name: str) -> None:
    assert "name" in one_problem({"name": name})


def test_an_evaluator_is_switched_on_and_off_by_its_key() -> None:
    (recipe,) = plan(BASE, {"evaluation.geometry": True}).recipes
    assert recipe["evaluation"]["geometry"] == {"split": "test"}
    assert "geometry" not in plan(BASE, {"evaluation.geometry": False}).recipes[0]["evaluation"]
    assert recipe["evaluation"]["calibration"] == {"bins": 15}


def test_datasets_of_an_evaluator_lie_where_the_data_lie() -> None:
    base = BASE | {"data": {"name": "dtd", "root": "DATA"}, "tuning": "zero_shot", "head": "text"}
    datasets = ["eurosat", {"name": "folder", "root": "elsewhere"}, "icons_lt"]
    (recipe,) = plan(base, {"evaluation.transfer": {"datasets": datasets}}).recipes
    sections = recipe["evaluation"]["transfer"]["datasets"]
    assert [section.get("root") for section in sections] == ["DATA", "elsewhere", None]
    assert sections[0]["templates"] == "dataset"
    problem = one_problem({"evaluation.transfer": {"datasets": ["eurosatt"]}}, base)
    assert "evaluation.transfer.datasets.0.name: unknown dataset 'eurosatt'" in problem
