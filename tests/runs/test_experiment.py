"""One run from data to result: it learns, and one seed gives one set of numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_vlm import InputError, files
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs.experiment import run_recipe
from imbalance_vlm.runs.resources import Resources
from tests.conftest import write_images
from tests.runs.running import Recipe, run, weights

CPU = torch.device("cpu")


def test_linear_probe_learns_and_fills_its_folder(recipe: Recipe) -> None:
    result = run(recipe, "training.epochs=30")
    assert result.scores["overall"] > 80
    assert {path.name for path in result.path.iterdir()} == {
        "recipe.resolved.yaml",
        "classes.json",
        "head.safetensors",
        "metrics.jsonl",
        "predictions.csv",
        "result.json",
    }
    assert list(result.table.columns)[:9] == [
        "recipe", "dataset", "encoder", "pretrained", "pretrain_pairs", "tuning", "head", "balancing", "seeds",
    ]  # fmt: skip


def test_evaluators_that_are_on_by_default_can_be_left_out(recipe: Recipe) -> None:
    result = run(recipe, "evaluation.accuracy=false", "evaluation.calibration=false", "evaluation.geometry=true")
    assert not {"overall", "ece"} & set(result.scores)
    assert "nc1" in result.scores
    assert "overall" not in result.table.columns


# -- the same numbers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["linear", "cosine", "decoder"])
def test_one_seed_gives_one_set_of_numbers(recipe: Recipe, head: str) -> None:
    """The first run encodes the images, the second reads their features from the cache."""
    options = {"drop": 0.5, "init": "class_mean"} if head == "decoder" else {}
    recipe = recipe | {"head": {"name": head, **options}}
    first, second = run(recipe, runs="a"), run(recipe, runs="b")
    assert weights(first) == weights(second)
    np.testing.assert_equal(first.scores, second.scores)
    assert (first.path / "predictions.csv").read_bytes() == (second.path / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    "tuning",
    [
        {"name": "peft", "method": "lora"},
        {"name": "peft", "method": "partial"},
        {"name": "prompt", "method": "vpt", "tokens": 2},
        "full",
    ],
    ids=["lora", "partial", "vpt", "full"],
)
def test_runs_that_share_an_encoder_do_not_change_each_other(recipe: Recipe, tuning: Any) -> None:
    """A tuned tower is given back as it was."""
    resources = Resources()
    head = "text" if "prompt" in str(tuning) else "cosine"
    tuned, probe = (plan(recipe | change).recipes[0] for change in ({"tuning": tuning, "head": head}, {}))
    first = run_recipe(probe, Path("a"), CPU, resources)
    run_recipe(tuned, Path("b"), CPU, resources)
    uncached = plan(recipe, {"encoder.cache": False}).recipes[0]
    second = run_recipe(uncached, Path("c"), CPU, resources)
    assert weights(first)[-256:] == weights(second)[-256:]  # beside the header, which names the folder's hash
    assert (Path("a") / "predictions.csv").read_bytes() == (Path("c") / "predictions.csv").read_bytes()


def test_order_of_the_data_depends_on_seed_and_epoch(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, ...]] = []
    batches = FeatureSource.batches

    def recorded(self: FeatureSource, rows: Any, epoch: int = 0) -> Any:
        orders.append(tuple(row for batch in rows for row in batch.tolist()))
        return batches(self, rows, epoch)

    monkeypatch.setattr(FeatureSource, "batches", recorded)
    for seed in (0, 1):
        run(recipe, f"seed={seed}", "training.epochs=2")
    training = [order for order in orders if len(order) == 45]
    assert len(training) == len(set(training)) == 4, "two seeds, two epochs, four orders"


def test_time_between_checkpoints_changes_no_weight(recipe: Recipe) -> None:
    often, never = (run(recipe, f"training.checkpoint_seconds={value}", runs=str(value)) for value in (0, 1000))
    assert often.path.name == never.path.name
    assert weights(often) == weights(never)


# -- what can go wrong -----------------------------------------------------------------------------------------------


def test_full_disk_leaves_no_partial_result(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(InputError, match="no space left on the disk"):
            run(recipe)
    assert not [path for path in Path("runs").rglob(".result*") if path.suffix == ".json"]
    assert run(recipe).scores["overall"] >= 0


def test_images_of_one_pixel_do_not_stop_a_run(recipe: Recipe, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "dots" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    result = run(recipe, f"data.root={tmp_path / 'dots'}", "tuning={name: linear_probe, views: 2}")
    assert result.record["images"]["train"] == 2


@pytest.mark.parametrize(("images_per_class", "remedy"), [(2, "add images"), (3, "=0.5"), (20, "=0.1")])
def test_the_remedy_for_missing_validation_images_works(
    images_per_class: int, remedy: str, recipe: Recipe, tmp_path: Path
) -> None:
    write_images(tmp_path / "flat", {"red_apple": images_per_class, "blue_car": images_per_class})
    changes = [f"data.root={tmp_path / 'flat'}", "data.test_fraction=0.4", "balancing.post_hoc=logit_adjustment"]
    with pytest.raises(
        InputError, match=r"or (add images: .*|set images aside for validation with (data\.val_fraction=\S+))$"
    ) as error:
        run(recipe, *changes)
    assert remedy in str(error.value)
    if "=" in remedy:
        setting = str(error.value).rpartition("with ")[2]
        assert run(recipe, *changes, setting, "training.epochs=1").record["images"]["val"] >= 2
