"""The JSON Schema of recipes: it accepts every packaged recipe and refuses what the checker refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imbalance_vlm.recipe.json_schema import json_schema
from imbalance_vlm.recipe.load import load, merge, nested, read_yaml, recipes_folder

FILES = sorted(recipes_folder().rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _name(path: Path) -> str:
    return path.relative_to(recipes_folder()).with_suffix("").as_posix()


@pytest.mark.parametrize("path", [path for path in FILES if "_base" not in path.parts], ids=_name)
def test_packaged_recipes_validate_as_an_editor_sees_them_and_once_merged(
    path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(read_yaml(path))
    validator.validate(load(path).tree)


GOOD: dict[str, Any] = {
    "data": {"name": "folder", "root": "photos"},
    "encoder": {"name": "ViT-B-16", "pretrained": "openai"},
    "tuning": "linear_probe",
    "head": {"name": "cosine", "init": "text"},
    "balancing": {"loss": {"name": "focal", "gamma": 2}},
}
STUDY: dict[str, Any] = {"grid": {"variants": {"a": {"balancing.loss": "focal"}, "b": None}, "seeds": [0, 1]}}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head": {"scale": 20}},
        {"balancing": {"regularizers": "npt"}},
        {"balancing": {"post_hoc": None}},
        {"evaluation": {"groups": {"many": 50}}},
        STUDY,
        {"grid": {"variants": {"a": {"evaluation.groups.few": 10}}}},
        {"grid": {"axes": {"data.val_fraction": [0.1, 0.2]}}},
    ],
    ids=str,
)
def test_accepts(change: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(merge(GOOD, change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("balancing.los", "focal"),
        ("balancing.loss.name", "focl"),
        ("balancing.loss.gama", 2),
        ("balancing.loss.tau", 1.0),  # a setting of another loss
        ("balancing.loss.gamma", -1),
        ("balancing.loss.gamma", "2"),
        ("head.init", "texts"),
        ("training.epochs", 0),
        ("training.epochs", 2.5),
        ("training.ema", 1.0),
        ("seed", -1),
        ("data.root", 5),
        ("tuning", {"name": "prompt", "method": "lora"}),
        ("tuning", {"name": "peft", "method": "lora", "n_ctx": 4}),
        ("grid.variants", {"a": {"balancing.los": "focal"}}),
        ("grid.variants", {"a": {"training.epochs": 0}}),
        ("grid.axes", {"training.epochs": []}),
        ("grid.axes", {"training.epochs": [0]}),
        ("grid.seeds", [-1]),
        ("table", {"colums": ["overall"]}),
        ("plot", {"log_x": 1}),
    ],
)
def test_refuses(key: str, value: Any, validator: jsonschema.Draft202012Validator) -> None:
    assert not validator.is_valid(merge(GOOD, nested(key, value)))


@pytest.mark.parametrize("missing", ["data", "encoder", "tuning"])
def test_a_recipe_that_stands_alone_is_complete(missing: str, validator: jsonschema.Draft202012Validator) -> None:
    recipe = {key: value for key, value in GOOD.items() if key != missing}
    assert not validator.is_valid(recipe)
    assert validator.is_valid(recipe | {"include": ["base.yaml"]})
    assert validator.is_valid(recipe | STUDY)


def test_required_settings_are_asked_for(validator: jsonschema.Draft202012Validator) -> None:
    assert not validator.is_valid(GOOD | {"data": {"name": "folder"}})
    assert not validator.is_valid(GOOD | {"data": {"root": "photos"}})
    assert validator.is_valid(GOOD | {"data": "icons_lt"})
