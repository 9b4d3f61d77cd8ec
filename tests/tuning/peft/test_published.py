"""The recipes of published rows: two steps of each on generated images in the dataset's real layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import imbalance_vlm
from imbalance_vlm.recipe.load import load, recipes_folder
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.result import RunResult
from tests.data.miniatures import MINIATURES

DATASETS = ("imagenet_lt", "places_lt", "inat2018", "cifar100_lt")
RECIPES = [
    path.relative_to(recipes_folder()).with_suffix("").as_posix()
    for name in DATASETS
    for path in sorted((recipes_folder() / name).glob("*.yaml"))
]
EPOCHS = {"lift": 10, "full_averaged": 20}


@pytest.mark.parametrize("name", RECIPES)
def test_trains_two_steps_and_is_tested(name: str, tiny_clip: str, tmp_path: Path) -> None:
    section = MINIATURES[name.split("/")[0]](tmp_path)
    images = 200 if section["name"] == "cifar100_lt" else 15
    overrides: dict[str, Any] = {f"data.{key}": value for key, value in section.items() if key != "name"}
    (recipe,) = plan(name).recipes
    settings = {key: recipe["encoder"][key] for key in ("features", "precision")}  # another name drops the settings
    overrides["encoder"] = {"name": tiny_clip, "pretrained": None, **settings}
    overrides |= {"training.epochs": 1, "training.batch_size": (images + 1) // 2}
    if "/decoder" in name:
        overrides["tuning.views"] = 2
    result = imbalance_vlm.run(name, overrides, device="cpu")
    assert isinstance(result, RunResult)
    assert 0 <= result.scores["overall"] <= 100
    assert result.record["identity"]["dataset"] == section["name"]
    assert (result.record["cost"]["trainable_parameters"] > 0) == ("zero_shot" not in name)


@pytest.mark.parametrize("name", RECIPES)
def test_says_what_it_takes_and_what_was_published(name: str) -> None:
    (recipe,) = plan(name).recipes
    text = (recipes_folder() / f"{name}.yaml").read_text()
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Hardware and time expected" in header
    assert "Not verified here" in header
    assert "Paper:" in header
    figures = {key: value for key, value in (recipe["paper"] or {}).items() if key != "source"}
    assert all(f"{value:g}" in header for key, value in figures.items() if key == "overall")
    if not figures:
        assert "confirmed" in header, "a figure that nobody has checked is not printed beside ours"
    dataset, _, kind = name.partition("/")
    assert recipe["data"]["name"] == dataset
    if kind in EPOCHS:
        assert recipe["training"]["epochs"] == (20 if name == "inat2018/lift" else EPOCHS[kind])


def test_lift_is_the_authors_setting() -> None:
    """The numbers of their configuration, github.com/shijxcs/LIFT."""
    (recipe,) = plan("imagenet_lt/lift").recipes
    assert recipe["tuning"] | {"crops": ""} == {
        "name": "peft",
        "method": "adaptformer",
        "width": None,
        "crops": "",
        "min_scale": 0.08,
    }
    head, optimizer = recipe["head"], recipe["training"]["optimizer"]
    assert (head["name"], head["init"], head["scale"]) == ("cosine", "text", 25)
    assert (optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == (0.01, 0.9, 5e-4)
    assert recipe["training"]["batch_size"] == 128
    assert recipe["balancing"]["loss"]["name"] == "logit_adjustment"
    assert recipe["encoder"]["features"] == "class_token"
    assert recipe["encoder"]["name"].endswith("-quickgelu"), "OpenAI's weights were trained with that activation"


@pytest.mark.parametrize("name", [name for name in RECIPES if "/decoder" in name])
def test_the_decoder_trains_for_the_published_number_of_steps(name: str) -> None:
    (recipe,) = plan(name).recipes
    images = {"imagenet_lt": 115_846, "places_lt": 62_500, "inat2018": 437_513}[name.split("/")[0]]
    per_epoch = images / recipe["training"]["batch_size"]
    assert recipe["training"]["epochs"] * per_epoch == pytest.approx(8192, rel=0.05)
    assert recipe["training"]["schedule"]["warmup_epochs"] * per_epoch == pytest.approx(512, rel=0.02)
    assert recipe["tuning"]["views"] == recipe["training"]["epochs"], "a new crop at every epoch"


def test_every_benchmark_has_its_rows() -> None:
    assert {"imagenet_lt/decoder", "places_lt/decoder", "inat2018/decoder"} <= set(RECIPES)
    assert {f"{name}/{kind}" for name in DATASETS for kind in EPOCHS} <= set(RECIPES)
    assert all(load(name).tree["name"] == name for name in RECIPES)
