"""Every packaged recipe: it is valid, named after its place, opens with its command, and runs two steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import imbalance_vlm
from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.data.icons import IconsReader
from imbalance_vlm.recipe.load import find_recipe, list_recipes, load
from imbalance_vlm.recipe.schema import datasets_in
from imbalance_vlm.recipe.study import plan
from tests.data.miniatures import MINIATURES

Recipe = dict[str, Any]

NAMES = list_recipes()
ICONS = [name for name in NAMES if load(name).tree["data"]["name"] == "icons_lt"]
TINY_TIMM = {"name": "timm:test_vit", "pretrained": "random"}


@pytest.mark.parametrize("name", NAMES)
def test_is_valid_and_named_after_its_place(name: str) -> None:
    wanted = plan(name)
    assert wanted.name == name
    assert yaml.safe_load(find_recipe(name).read_text()).get("name", name) == name
    assert all(recipe["name"] == name or recipe["name"].startswith(f"{name}/") for recipe in wanted.recipes)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_command(name: str) -> None:
    commands = f"imbalance-vlm run {name}", f"python tools/run.py recipes/{name}.yaml"
    first_line = find_recipe(name).read_text().splitlines()[0]
    assert any(command in first_line for command in commands)


# -- two steps -------------------------------------------------------------------------------------------------------
def read_noise(reader: IconsReader) -> Dataset:
    """49 training images of noise in the shape of an embedded dataset, in its place."""
    counts = [24, 12, 6, 4, 3]
    rng = np.random.default_rng(0)

    def split(labels: Any) -> Split:
        return Split(ArrayImages(rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)), labels)

    labels = np.arange(len(counts))
    splits = {"train": split(labels.repeat(counts)), "val": split(labels), "test": split(labels.repeat(2))}
    return Dataset(reader.name, tuple(f"thing {label}" for label in labels), splits, flips=False)


def epochs_of_first_pass(recipes: Sequence[Recipe]) -> int:
    """Epochs whose weights a gradient transform keeps to learn a subspace from; its directions must be fewer."""
    return max(((recipe["balancing"]["gradient"] or {}).get("keep", 1) for recipe in recipes), default=1)


@pytest.mark.parametrize("name", ICONS)
def test_an_icons_recipe_runs_two_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own encoder, on noise; of a study, one seed and the last value of each axis, and the table."""
    monkeypatch.setattr(IconsReader, "read", read_noise)
    wanted = plan(name)
    epochs = epochs_of_first_pass(wanted.recipes)
    overrides: dict[str, Any] = {"training.epochs": epochs, "training.batch_size": 32 if epochs == 1 else 8}
    grid = wanted.study.get("grid", {})
    overrides |= {f"grid.axes.{key}": values[-1:] for key, values in (grid.get("axes") or {}).items()}
    if grid.get("seeds"):
        overrides["grid.seeds"] = [0]
    result = imbalance_vlm.run(name, overrides, device="cpu")
    assert (result.path / ("table.csv" if wanted.is_study else "result.json")).is_file()


def miniature(recipe: Recipe, place: Callable[[str], Mapping[str, Any]], encoder: str) -> Recipe:
    """A complete recipe on miniatures of its datasets, with a tiny encoder of the same library."""
    recipe = json.loads(json.dumps(recipe))
    for section in datasets_in(recipe):
        section.update({"name": section["name"], **place(section["name"])})
    is_timm = recipe["encoder"]["name"].startswith("timm:")
    recipe["encoder"] |= TINY_TIMM if is_timm else {"name": encoder, "pretrained": None}
    if recipe["tuning"].get("n_ctx"):
        recipe["tuning"]["n_ctx"] = 4  # the tiny text tower reads 16 tokens
    if "keep" in (recipe["balancing"]["gradient"] or {}):
        recipe["balancing"]["gradient"] |= {"keep": 3, "rank": 1}
    recipe["training"] |= {"epochs": epochs_of_first_pass([recipe]), "batch_size": 8}
    return recipe | {"name": "miniature", "seed": 0}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ICONS])
def test_another_recipe_runs_two_steps_on_miniatures(name: str, tmp_path: Path, tiny_clip: str) -> None:
    """Runs of a study that differ in nothing but dataset, encoder or seed are run once."""
    written: dict[str, Mapping[str, Any]] = {}

    def place(dataset: str) -> Mapping[str, Any]:
        if dataset not in written:
            written[dataset] = MINIATURES[dataset](tmp_path / "data")
        return written[dataset]

    distinct: dict[str, Recipe] = {}
    for recipe in plan(name).recipes:
        methods = {key: recipe[key] for key in ("tuning", "head", "balancing", "training")}
        distinct.setdefault(json.dumps(methods), recipe)
    for recipe in distinct.values():
        result = imbalance_vlm.run(miniature(recipe, place, tiny_clip), device="cpu")
        scores = result.scores
        assert 0 <= scores["overall"] <= 100
        assert ("h" in scores) == ("base_to_novel" in recipe["evaluation"])
        assert (result.record["cost"]["trainable_parameters"] > 0) == (recipe["tuning"]["name"] != "zero_shot")
