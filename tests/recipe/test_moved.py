"""Recipes of earlier versions: every key and value with a new name is refused with the new one."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm.components import catalogue
from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.resolve import MOVED, RENAMED
from imbalance_vlm.recipe.study import plan

BASE: dict[str, Any] = {
    "name": "r",
    "data": {"name": "folder", "root": "images", "classes": "base"},
    "encoder": {"name": "ViT-B-16", "pretrained": "openai"},
    "tuning": "linear_probe",
    "head": "cosine",
}


def one_problem(overrides: dict[str, Any], base: dict[str, Any] = BASE) -> str:
    with pytest.raises(RecipeError) as error:
        plan(base, overrides)
    (problem,) = error.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tuning.average", 0.5, "It is now `training.interpolation`"),
        ("evaluation.novel", True, "It is now `evaluation.base_to_novel`"),
        ("evaluation.curve", 5, "It is now `evaluation.base_to_novel.curve`"),
        ("evaluation.calibration_bins", 10, "It is now `evaluation.calibration.bins`"),
        ("evaluation.geometry", "test", "Did you mean `{split: test}`?"),
        ("evaluation.geometry", "train", "Did you mean `{split: train}`?"),
        ("evaluation.geometry", "none", "must be true, false or a mapping of its settings, got 'none'"),
        ("evaluation.transfer", ["eurosat", "dtd"], "Did you mean `{datasets: ['eurosat', 'dtd']}`?"),
        ("tuning", {"name": "full", "crops": "minimalist"}, "tuning.crops: 'minimalist' is now 'growing'"),
        (
            "tuning",
            {"name": "peft", "method": "lora", "crops": "minimalist"},
            "tuning.crops: 'minimalist' is now 'growing'",
        ),
        ("head", {"name": "prototype_guided", "guide": "class_mean"}, "head.guide: 'class_mean' is now 'moving'"),
        (
            "head",
            {"name": "prototype_guided", "guide": "prototype"},
            "head.guide: 'prototype' is now 'fixed', with init 'prototype'",
        ),
        (
            "training.schedule",
            "held_cosine",
            "training.schedule.name: 'held_cosine' is now 'cosine_constant_warmup'",
        ),
        (
            "training.schedule",
            {"name": "held_cosine", "lr_min": 0.001},
            "training.schedule.name: 'held_cosine' is now 'cosine_constant_warmup'",
        ),
    ],
)
def test_an_earlier_key_or_value_is_refused_with_the_new_one(key: str, value: Any, message: str) -> None:
    assert message in one_problem({key: value})


@pytest.mark.parametrize(
    "overrides",
    [
        {"training.interpolation": 0.5},
        {"evaluation.calibration.bins": 10},
        {"evaluation.geometry": {"split": "train"}},
        {"tuning": {"name": "full", "crops": "growing"}},
        {"head": {"name": "prototype_guided", "guide": "fixed", "init": "prototype", "adapter": 8}},
        {"training.schedule": {"name": "cosine_constant_warmup", "lr_min": 0.001}},
        {"tuning": "zero_shot", "head": "text", "evaluation.base_to_novel": True},
        {"tuning": {"name": "prompt", "method": "coop"}, "head": "text", "evaluation.base_to_novel": {"curve": 5}},
        {"tuning": "zero_shot", "head": "text", "evaluation.transfer": {"datasets": ["eurosat", "dtd"]}},
    ],
)
def test_what_the_messages_suggest_is_accepted(overrides: dict[str, Any]) -> None:
    assert plan(BASE, overrides).recipes


def test_no_earlier_name_is_in_use_again() -> None:
    names = {entry.name for registry in catalogue.REGISTRIES.values() for entry in registry}
    assert not {value for key, value in RENAMED if key.endswith(".name")} & names
    for key in MOVED:
        assert "unknown key" in one_problem({key: None})


def test_an_earlier_key_in_a_variant_of_a_study_is_named_there() -> None:
    base = BASE | {"grid": {"variants": {"novel": {"evaluation.novel": True}}}}
    assert "It is now `evaluation.base_to_novel`" in one_problem({}, base)
