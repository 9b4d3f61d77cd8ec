"""Which folder a run has: what its numbers depend on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from imbalance_vlm.results.folder import config_hash, recipe_hash

from imbalance_vlm import __version__
from imbalance_vlm.data.prepare import dataset_identity
from imbalance_vlm.encoders.factory import encoder_identity
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results import folder


def complete(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    (found,) = plan(recipe, {key.replace("__", "."): value for key, value in changes.items()}).recipes
    return found


def as_before(recipe: dict[str, Any]) -> tuple[str, str]:
    """Both hashes as they were made when no recipe had the later settings."""
    old = json.loads(json.dumps(recipe))
    for section, name in folder._LATER:
        del old[section][name]
    whole = hashlib.sha256(json.dumps(old | {"seed": None}, sort_keys=True, default=str).encode()).hexdigest()
    core = {key: value for key, value in old.items() if key not in ("name", "description", "paper")}
    del core["training"]["checkpoint_seconds"]
    parts = [
        json.dumps(core, sort_keys=True, default=str),
        dataset_identity(old["data"]),
        encoder_identity(old["encoder"]),
        __version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest(), whole


def test_a_setting_that_came_later_leaves_finished_runs_where_they_are(recipe: dict[str, Any]) -> None:
    """As long as it is not set."""
    plain = complete(recipe)
    for section, name in folder._LATER:
        assert plain[section][name] == folder._LATER[section, name], "the default is what was done before"
    assert (recipe_hash(plain), config_hash(plain)) == as_before(plain)


@pytest.mark.parametrize("change", [{"encoder__decoder": "torchvision"}, {"encoder__resized": 64}])
def test_set_to_anything_else_it_is_another_run(change: dict[str, Any], recipe: dict[str, Any]) -> None:
    assert recipe_hash(complete(recipe, **change)) != recipe_hash(complete(recipe))
    assert config_hash(complete(recipe, **change)) != config_hash(complete(recipe))


@pytest.mark.parametrize(
    "change", [{"training__checkpoint_seconds": 1.0}, {"training__shard": True, "tuning": "full", "head": "cosine"}]
)
def test_how_numbers_are_come_by_does_not_count(change: dict[str, Any], recipe: dict[str, Any]) -> None:
    same = complete(recipe, **change)
    last = next(key for key in change if key.startswith("training"))
    section, name = last.split("__")
    other = same | {section: same[section] | {name: 30.0 if name == "checkpoint_seconds" else False}}
    assert recipe_hash(same) == recipe_hash(other)


@pytest.mark.parametrize("change", [{"training__epochs": 4}, {"seed": 1}, {"head": "cosine"}])
def test_what_changes_numbers_counts(change: dict[str, Any], recipe: dict[str, Any]) -> None:
    assert recipe_hash(complete(recipe, **change)) != recipe_hash(complete(recipe))
