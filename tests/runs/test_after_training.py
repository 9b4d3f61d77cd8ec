"""Runs with second stages, post-hoc corrections, weight averages and geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.evaluation.geometry import Geometry
from imbalance_vlm.results.result import RunResult
from tests.runs.running import Recipe, run

TEXT_LEARNED = ("image_text_contrast", "text_anchor", "npt", "cpt")
"""Regularizers of text features that prompt tuning learns; tests/tuning has their runs."""
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
    scores = run(recipe, "evaluation.geometry=true").scores
    assert names <= set(scores)
    assert 0 <= scores["nc4"] <= 1


def test_moving_average_and_interpolation_change_the_result(recipe: Recipe) -> None:
    text = "head={name: cosine, init: text}"
    start = state(run(recipe, text, "training.optimizer.lr=1e-12"))["weight"]
    plain, half = (state(run(recipe, text, f"training.interpolation={part}"))["weight"] for part in (1.0, 0.5))
    torch.testing.assert_close(half, (start + plain) / 2, atol=1e-6, rtol=1e-5)
    averaged = state(run(recipe, text, "training.ema=0.9"))["weight"]
    assert not torch.equal(averaged, plain)


def test_texts_and_images_are_encoded_once_per_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head starts from the text features and geometry reads them and the test features again."""
    names: list[int] = []
    images: list[int] = []
    text_features, image_features = OpenClipEncoder.text_features, OpenClipEncoder.image_features

    def count_texts(self: OpenClipEncoder, class_names: Any, *arguments: Any) -> torch.Tensor:
        names.append(len(class_names))
        return text_features(self, class_names, *arguments)

    def count_images(self: OpenClipEncoder, pixels: torch.Tensor, *arguments: Any) -> Any:
        images.append(len(pixels))
        return image_features(self, pixels, *arguments)

    monkeypatch.setattr(OpenClipEncoder, "text_features", count_texts)
    monkeypatch.setattr(OpenClipEncoder, "image_features", count_images)
    result = run(recipe, "head={name: cosine, init: text}", "evaluation.geometry=true")
    assert names == [4]
    assert [images.count(result.record["images"][split]) for split in ("train", "test")] == [1, 1]
