"""Second stages, post-hoc corrections, averages and geometry in runs of a recipe, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imbalance_vlm import InputError, assembly
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.evaluation.geometry import Geometry
from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.result import RunResult
from tests.test_runner import run

Recipe = dict[str, Any]
TEXT_LEARNED = ("image_text_contrast", "text_anchor", "npt", "cpt")  # for text that prompt tuning learns
EXPERTS = ("head=experts", "balancing.loss=sade")


@pytest.fixture
def with_validation(recipe: Recipe, images: Path) -> Recipe:
    """The recipe over one folder of classes, split into training, validation and test images."""
    data = {"name": "folder", "root": str(images / "train"), "val_fraction": 0.3, "test_fraction": 0.3}
    return recipe | {"data": data, "balancing": {"loss": "cross_entropy"}}


def state(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.path / "head.safetensors")


@pytest.mark.parametrize("name", catalogue.SECOND_STAGES.names())
def test_every_second_stage_runs_from_a_recipe(name: str, with_validation: Recipe) -> None:
    result = run(with_validation, f"balancing.second_stage={name}", *(EXPERTS if name == "expert_aggregation" else ()))
    assert name in result.record["identity"]["balancing"]
    assert any(key.startswith("second_stage.") for key in state(result)) or name == "ncm"
    assert not (result.path / "second_stage" / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", catalogue.POST_HOC.names())
def test_every_post_hoc_correction_runs_from_a_recipe(name: str, with_validation: Recipe) -> None:
    result = run(with_validation, f"balancing.post_hoc={name}")
    assert f"post-hoc {name}" in result.record["identity"]["balancing"]


@pytest.mark.parametrize("name", [name for name in catalogue.REGULARIZERS.names() if name not in TEXT_LEARNED])
def test_every_regularizer_runs_from_a_recipe(name: str, with_validation: Recipe) -> None:
    plain = run(with_validation, "head={name: linear, adapter: 8}")
    result = run(with_validation, "head={name: linear, adapter: 8}", f"balancing.regularizers=[{name}]")
    assert name in result.record["identity"]["balancing"]
    assert not torch.equal(state(plain)["layer.weight"], state(result)["layer.weight"])


def test_chosen_values_are_reported_and_recorded(with_validation: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(with_validation, "balancing.second_stage=tau_norm", "balancing.post_hoc=logit_adjustment")
    assert set(result.record["chosen"]) == {"second_stage.tau", "post_hoc.tau"}
    assert "chosen: balancing.second_stage.tau" in capsys.readouterr().err
    assert result.table["chosen"][0].startswith("tau ")


def test_fixed_value_is_not_chosen(with_validation: Recipe) -> None:
    result = run(with_validation, "balancing.second_stage={name: tau_norm, tau: 0.5}")
    assert result.record["chosen"] == {}


def test_choice_without_validation_images_is_refused_before_training(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`balancing.post_hoc` 'logit_adjustment' .*has none.*val_fraction"):
        run(recipe, "balancing.post_hoc=logit_adjustment")
    assert not list(tmp_path.rglob("metrics.jsonl"))
    run(recipe, "balancing.post_hoc={name: logit_adjustment, tau: 1.0}")


def test_second_stage_keeps_the_trained_head(with_validation: Recipe) -> None:
    first = state(run(with_validation))
    second = state(run(with_validation, "balancing.second_stage={name: crt, epochs: 2}"))
    assert all(torch.equal(second[f"head.{key}"], value) for key, value in first.items())


def test_geometry_is_measured_when_asked_for(recipe: Recipe) -> None:
    names = {column.name for column in Geometry.columns}
    assert not set(run(recipe).scores) & names
    scores = run(recipe, "evaluation.geometry=test").scores
    assert names <= set(scores)
    assert 0 <= scores["nc4"] <= 1


def test_moving_average_and_interpolation_change_the_result(recipe: Recipe) -> None:
    text = "head={name: cosine, init: text}"
    start = state(run(recipe, text, "training.optimizer.lr=1e-12"))["weight"]
    plain, half = (state(run(recipe, text, f"training.interpolation={part}"))["weight"] for part in (1.0, 0.5))
    torch.testing.assert_close(half, (start + plain) / 2, atol=1e-6, rtol=1e-5)
    averaged = state(run(recipe, text, "training.ema=0.9"))["weight"]
    assert not torch.equal(averaged, plain)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"balancing.loss": "sade"}, ["head:", "'experts'"]),
        ({"head": "experts"}, ["balancing.loss:", "'sade'"]),
        ({"balancing.loss": "etf_dot_regression"}, ["head:", "{name: prototype, scale: 1}"]),
        ({"head": {"name": "prototype", "normalise": False}}, ["head.normalise:", "etf_dot_regression"]),
        ({"balancing.loss": "paco"}, ["head:", "'paco'", "head.adapter"]),
        ({"balancing.regularizers": ["prototype_contrastive"]}, ["regularizers:", "head.adapter"]),
        ({"balancing.second_stage": "expert_aggregation"}, ["second_stage:", "'experts'"]),
        ({"training.interpolation": 0.5}, ["training.interpolation:", "init 'text'"]),
        ({"balancing.post_hoc": "temprature"}, ["post_hoc.name:", "Did you mean 'temperature'?"]),
        ({"balancing.second_stage": {"name": "tau_norm", "tua": 1}}, ["second_stage.tua:", "'tau'"]),
        ({"balancing.regularizers": 3}, ["balancing.regularizers:", "must be a list of regularizers"]),
        ({"balancing.regularizers": [{"weight": 1}]}, ["balancing.regularizers.0:", "must be the name"]),
    ],
)
def test_components_that_cannot_be_combined_are_refused(overrides: Recipe, words: list[str], recipe: Recipe) -> None:
    with pytest.raises(RecipeError) as error:
        plan(recipe, overrides)
    (problem,) = map(str, error.value.problems)
    assert all(word in problem for word in words), problem


def test_zero_shot_accepts_a_post_hoc_correction_but_no_second_stage(recipe: Recipe) -> None:
    zero_shot = {"tuning": "zero_shot", "head": "text"}
    with pytest.raises(RecipeError, match="'crt' is fitted on a trained head"):
        plan(recipe, zero_shot | {"balancing.second_stage": "crt"})
    plan(recipe, zero_shot | {"balancing.post_hoc": "temperature"})


def test_regularizer_named_twice_is_refused(recipe: Recipe) -> None:
    twice = {"head": {"name": "linear", "adapter": 4}, "balancing.regularizers": ["prototype_contrastive"] * 2}
    with pytest.raises(RecipeError, match="once"):
        plan(recipe, twice)


def test_text_and_test_features_are_computed_once_per_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head starts from the text features and geometry measures them, but the text tower runs once."""
    names: list[int] = []
    splits: list[str] = []
    text, made = OpenClipEncoder.text_features, assembly.feature_source

    def counted_text(self: OpenClipEncoder, class_names: Any, *rest: Any) -> torch.Tensor:
        names.append(len(class_names))
        return text(self, class_names, *rest)

    def counted_source(encoder: Any, split: Any, kind: str, transforms: Any, device: Any, what: str, **how: Any) -> Any:
        splits.append(what.rpartition(" ")[2])
        return made(encoder, split, kind, transforms, device, what, **how)

    monkeypatch.setattr(OpenClipEncoder, "text_features", counted_text)
    monkeypatch.setattr(assembly, "feature_source", counted_source)
    monkeypatch.setattr(
        assembly, "settings_of", lambda target: settings_of(made if target is counted_source else target)
    )
    run(recipe, "head={name: cosine, init: text}", "evaluation.geometry=test")
    assert len(names) == 1
    assert sorted(splits) == ["test", "train"]
