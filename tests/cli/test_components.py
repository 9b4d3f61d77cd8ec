"""`ls`, `show`, `validate` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from imbalance_vlm.cli.main import main
from imbalance_vlm.components import catalogue
from imbalance_vlm.recipe.load import list_recipes

Capture = pytest.CaptureFixture[str]


def test_ls_lists_everything_registered(capsys: Capture) -> None:
    assert main(["ls"]) == 0
    output = capsys.readouterr().out
    for kind, registry in catalogue.REGISTRIES.items():
        assert f"{kind}:" in output
        assert all(f"  {entry.name} " in output and entry.summary in output for entry in registry)
    assert all(f"  {name} " in output for name in list_recipes())


def test_ls_of_one_kind_lists_that_kind_only(capsys: Capture) -> None:
    assert main(["ls", "samplers"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "samplers:"
    assert [line.split()[0] for line in lines] == catalogue.SAMPLERS.names()


# -- show ------------------------------------------------------------------------------------------------------------
def test_show_prints_a_component_with_its_settings(capsys: Capture) -> None:
    assert main(["show", "logit_adjustment"]) == 0
    output = capsys.readouterr().out
    assert "logit_adjustment (losses)" in output
    assert "logit_adjustment (post_hoc)" in output, "the components of one name are all shown"
    assert "Menon" in output
    assert "tau: a number >= 0 (default 1.0)" in output


def test_show_prints_the_methods_of_a_family(capsys: Capture) -> None:
    assert main(["show", "peft"]) == 0
    assert "method: adaptformer, adapter, lora" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, registry in catalogue.REGISTRIES.items() for name in registry.names()],
    ids=lambda part: part,
)
def test_show_describes_every_setting_of_a_component(kind: str, name: str, capsys: Capture) -> None:
    assert main(["show", name]) == 0
    output = capsys.readouterr().out
    entry = catalogue.REGISTRIES[kind].get(name)
    for setting in entry.settings() if entry.methods is None else ():
        described = [line for line in output.splitlines() if line.startswith(f"  {setting}: ")]
        assert described
        assert all("). " in line for line in described), f"{setting} has no line in the docstring"


def test_show_prints_a_recipe_that_is_valid_as_it_is(recipe_file: str, capsys: Capture) -> None:
    assert main(["show", recipe_file, "training.epochs=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["epochs"] == 7
    assert shown["balancing"]["loss"]["label_smoothing"] == 0
    Path("shown.yaml").write_text(yaml.safe_dump(shown))
    assert main(["validate", "shown.yaml"]) == 0


def test_show_prints_each_run_of_a_study(recipe_file: str, capsys: Capture) -> None:
    Path("study.yaml").write_text(f"include: {recipe_file}\ngrid: {{seeds: [0, 1, 2]}}\n")
    assert main(["show", "study.yaml"]) == 0
    assert [recipe["seed"] for recipe in yaml.safe_load_all(capsys.readouterr().out)] == [0, 1, 2]


# -- validate and schema ---------------------------------------------------------------------------------------------
def test_validate_names_the_recipes_that_are_not_valid(recipe_file: str, capsys: Capture) -> None:
    Path("wrong.yaml").write_text("nam: x")
    Path("study.yaml").write_text(f"include: {recipe_file}\ngrid: {{seeds: [0, 1, 2]}}\n")
    assert main(["validate", recipe_file, "wrong.yaml", "study.yaml"]) == 2
    captured = capsys.readouterr()
    assert f"{recipe_file}: valid\n" in captured.out
    assert "study.yaml: valid, 3 runs\n" in captured.out
    assert "wrong.yaml: nam: unknown key" in captured.err
    assert "error: 1 of 3 recipes are not valid" in captured.err


def test_schema_is_json(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert "training" in json.loads(capsys.readouterr().out)["properties"]
