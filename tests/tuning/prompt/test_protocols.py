"""The protocols of the prompt papers from recipe to table, on miniatures in the real layouts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from imbalance_vlm import run
from imbalance_vlm.data.few_shot import FEW_SHOT, VARIANTS
from imbalance_vlm.data.prepare import create_dataset, with_draw_seed
from imbalance_vlm.errors import InputError
from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.result import RunResult, StudyResult
from tests.conftest import TINY_CLIP
from tests.data.miniatures import MINIATURES, write_image

ALL_SETS = ("imagenet", *FEW_SHOT, "fgvc_aircraft", *VARIANTS)


COLOURS = ("red_apple", "green_leaf", "blue_car", "white_cup")


@pytest.fixture(scope="module")
def roomy_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that reads as many tokens as CLIP does."""
    folder = tmp_path_factory.mktemp("roomy_clip")
    settings = {**TINY_CLIP["model_cfg"], "text_cfg": {**TINY_CLIP["model_cfg"]["text_cfg"], "context_length": 77}}
    (folder / "open_clip_config.json").write_text(json.dumps({**TINY_CLIP, "model_cfg": settings}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**settings)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def write_classes(root: Path, train: dict[str, int]) -> Path:
    """train/ and test/ class folders with these numbers of training images, and two test images per class."""
    for shade, (name, count) in enumerate(train.items()):
        for split, many in (("train", count), ("test", 2)):
            for number in range(many):
                write_image(root / split / name / f"{name} {number}.png", shade=shade + 100 * number)
    return root


def prompted(root: Path, tiny_clip: str, **more: Any) -> dict[str, Any]:
    """CoOp on the four colours of the test images."""
    return {
        "name": "prompted",
        "data": {"name": "folder", "root": str(root)},
        "encoder": {"name": tiny_clip},
        "tuning": {"name": "prompt", "method": "coop", "views": 0},
        "head": "text",
        "training": {"epochs": 1, "optimizer": {"lr": 0.01}},
        **more,
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", dict.fromkeys(COLOURS, 20))


@pytest.mark.parametrize("method", ["zero_shot", "coop", "maple"])
def test_a_tuned_prompt_is_tested_on_fourteen_other_sets(method: str, tmp_path: Path, roomy_clip: str) -> None:
    for name in ALL_SETS:
        MINIATURES[name](tmp_path)
    overrides = {"data.root": str(tmp_path / "few_shot"), "data.shots": 2, "encoder": {"name": roomy_clip}}
    result = run(f"cross_dataset/{method}", overrides | {"training.epochs": 1, "grid.seeds": [1]})
    assert isinstance(result, StudyResult)
    names = ["zero-shot", *({method} - {"zero_shot"})]
    assert [str(name).rpartition("/")[2] for name in result.table["recipe"]] == names, "zero-shot is in every table"
    for single in result.runs:
        accuracies = [single.scores[f"transfer_{name}"] for name in ALL_SETS[1:]]
        assert all(0 <= accuracy <= 100 for accuracy in accuracies)
        assert single.scores["transfer"] == pytest.approx(sum(accuracies) / 14)
    assert {f"transfer_{name}" for name in ALL_SETS[1:]} <= set(plan(f"cross_dataset/{method}").table["columns"])


@pytest.mark.parametrize("evaluation", [{"base_to_novel": True}, {"transfer": {"datasets": ["icons_lt"]}}])
def test_a_context_per_class_is_refused_for_other_classes_before_training(
    evaluation: dict[str, Any], tiny_clip: str
) -> None:
    recipe = prompted(Path("/a"), tiny_clip, evaluation=evaluation)
    recipe["data"]["classes"] = "base"
    plan(recipe)
    with pytest.raises(RecipeError, match="use tuning 'zero_shot' or a prompt method with csc false"):
        plan(recipe, {"tuning.csc": True})


def test_a_table_has_a_column_per_transfer_set(tiny_clip: str) -> None:
    recipe = prompted(
        Path("/a"), tiny_clip, evaluation={"transfer": {"datasets": ["dtd", {"name": "eurosat", "root": "/b"}]}}
    )
    study = {"grid": {"seeds": [0]}, "table": {"columns": ["transfer_dtd", "transfer_eurosat"]}}
    assert plan(recipe | study).table["columns"] == ["transfer_dtd", "transfer_eurosat"]
    with pytest.raises(RecipeError, match="unknown table column 'transfer_sun397'.*transfer_dtd"):
        plan(recipe | study | {"table": {"columns": ["transfer_sun397"]}})


@pytest.mark.parametrize("name", ["coop", "subpt"])
def test_zero_shot_is_in_the_few_shot_tables(name: str) -> None:
    wanted = plan(f"few_shot/{name}", ["data.name=dtd", "data.root=DATA"])
    assert "zero_shot" in {recipe["tuning"]["name"] for recipe in wanted.recipes}


def test_the_few_shot_study_runs_on_any_of_the_eleven_sets(tmp_path: Path, roomy_clip: str) -> None:
    section = MINIATURES["dtd"](tmp_path)
    overrides = {f"data.{key}": value for key, value in section.items()} | {"encoder": {"name": roomy_clip}}
    result = run("few_shot/coop", overrides | {"training.epochs": 1, "grid.seeds": [0, 1]})
    assert isinstance(result, StudyResult)
    assert result.table["n"].tolist() == [2] * len(result.table)
    assert result.table["overall"].between(0, 100).all()


def test_subpt_runs_with_one_shot(tmp_path: Path, roomy_clip: str) -> None:
    section = MINIATURES["dtd"](tmp_path)
    overrides = {f"data.{key}": value for key, value in section.items()} | {"encoder": {"name": roomy_clip}}
    wanted = plan("few_shot/subpt", overrides | {"training.epochs": 10, "training.batch_size": 1}).recipes
    learned = next(recipe for recipe in wanted if recipe["tuning"]["name"] == "prompt")
    assert (learned["data"]["shots"], learned["balancing"]["gradient"]["rank"]) == (1, 5)
    learned["training"]["optimizer"]["lr"] = 0.1  # random weights have small gradients
    result = run(learned)
    assert isinstance(result, RunResult)
    assert 0 <= result.scores["overall"] <= 100


def test_without_a_draw_seed_each_seed_draws_its_own_images(images: Path, tiny_clip: str) -> None:
    recipe = prompted(images, tiny_clip)
    recipe["data"] |= {"shots": 1, "draw_seed": None}
    first, second = (plan(recipe, {"seed": seed}).recipes[0] for seed in (0, 1))
    of_first, of_second = (
        create_dataset(**with_draw_seed(recipe["data"], recipe["seed"])).splits["train"].images.name(0)
        for recipe in (first, second)
    )
    assert of_first != of_second
    assert (
        create_dataset(**with_draw_seed(first["data"] | {"draw_seed": 1}, 0)).splits["train"].images.name(0)
        == of_second
    )


def test_training_with_fewer_images_than_a_batch(tmp_path: Path, tiny_clip: str) -> None:
    recipe = prompted(write_classes(tmp_path, dict(zip(COLOURS, (16, 8, 3, 1), strict=True))), tiny_clip)
    recipe["training"] |= {"batch_size": 32, "epochs": 2}
    result = run(recipe)
    assert isinstance(result, RunResult)
    assert 0 <= result.scores["overall"] <= 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"balancing.regularizers": [{"name": "npt", "form": "simplex"}]}, "at most 17", id="too many for an ETF"
        ),
        pytest.param(
            {"tuning.csc": True, "balancing.regularizers": [{"name": "text_anchor", "names": "external"}]},
            "context that all classes share",
            id="CSC with an anchor on other names",
        ),
        pytest.param(
            {"balancing.regularizers": [{"name": "text_anchor", "names": "novel"}]},
            "set data.classes to base",
            id="novel",
        ),
    ],
)
def test_what_cannot_be_tuned_gives_one_error_before_training(
    changes: dict[str, Any], message: str, tmp_path: Path, tiny_clip: str
) -> None:
    classes = [f"thing {number}" for number in range(18)]  # the tiny tower's features are 16 wide
    recipe = prompted(write_classes(tmp_path, dict.fromkeys(classes, 2)), tiny_clip)
    with pytest.raises(InputError, match=message) as error:
        run(recipe, {"tuning.init": "a photo", **changes})
    assert "\n" not in str(error.value)
    assert not list(Path("runs").rglob("result.json"))


def test_one_class_has_no_base_and_no_novel_half(tmp_path: Path, tiny_clip: str) -> None:
    recipe = prompted(write_classes(tmp_path / "one", {"red_apple": 2}), tiny_clip)
    recipe["data"] |= {"classes": "base"}
    with pytest.raises(InputError, match="at least 2 classes"):
        run(recipe)


def test_equal_class_names_are_refused(tmp_path: Path, tiny_clip: str) -> None:
    twins = write_classes(tmp_path, {"red_apple": 2, "red apple": 2})
    with pytest.raises(InputError, match="'red apple' more than once"):
        run(prompted(twins, tiny_clip), {"tuning.init": "a photo"})


def test_a_split_file_with_a_missing_image_names_it(tmp_path: Path, tiny_clip: str) -> None:
    section = MINIATURES["dtd"](tmp_path)
    gone = next(iter(sorted((Path(section["root"])).rglob("*.jpg"))))
    gone.unlink()
    recipe = prompted(tmp_path, tiny_clip) | {"data": section}
    with pytest.raises(InputError, match=gone.name):
        run(recipe, {"tuning.init": "a photo"})
