"""Features and weights that are not finite never become a result: the images, or the weights, are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import imbalance_vlm
from imbalance_vlm import InputError
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.runs.classifier import TrainedClassifier, predict_images

Recipe = dict[str, Any]


def damage(monkeypatch: pytest.MonkeyPatch, file: Path, value: float) -> None:
    """Let the encoder give features that are not finite for one image."""
    compute = OpenClipEncoder.image_features

    def damaged(self: OpenClipEncoder, pixels: Tensor, *arguments: Any) -> Tensor:
        features = compute(self, pixels, *arguments).clone()
        with Image.open(file) as image:
            features[(pixels == self.preprocessing(image)).flatten(1).all(1), ..., 0] = value
        return features

    monkeypatch.setattr(OpenClipEncoder, "image_features", damaged)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "in every pass"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "change",
    [{}, {"tuning": "zero_shot", "head": "text"}, {"head": {"name": "linear", "init": "class_mean"}}],
    ids=["trained", "zero-shot", "class means"],
)
def test_features_that_are_not_finite_name_their_image(
    change: Recipe, split: str, cache: bool, value: float, recipe: Recipe, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if split == "train" and "tuning" in change:
        pytest.skip("zero-shot recognition reads no training images")
    with monkeypatch.context() as patch:
        damage(patch, images / split / "blue_car" / "2.png", value)
        with pytest.raises(InputError, match=r"got nan or inf for .*blue_car.2\.png'; .*damaged"):
            imbalance_vlm.run(recipe | change, {"encoder.cache": cache})
    assert not list(Path("runs").rglob("result.json"))
    imbalance_vlm.run(recipe | change, {"encoder.cache": cache})  # nothing of it was kept


def test_predictions_for_an_image_whose_features_are_not_finite_are_refused(
    recipe: Recipe, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = imbalance_vlm.run(recipe)
    assert isinstance(result, RunResult)
    file = images / "test" / "blue_car" / "2.png"
    damage(monkeypatch, file, math.nan)
    with pytest.raises(InputError, match=r"got nan or inf for .*blue_car.2\.png"):
        predict_images(result.path, [file.parent])


@pytest.mark.parametrize("second_stage", ["crt", "lws", "ncm"])
def test_embeddings_that_are_not_finite_name_their_image(
    second_stage: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, because the last step of the training has diverged."""
    embed = LinearHead.embed

    def damaged(self: LinearHead, features: Tensor) -> Tensor:
        embeddings = embed(self, features)
        return embeddings if self.training else embeddings.index_fill(0, torch.tensor([2]), math.nan)

    monkeypatch.setattr(LinearHead, "embed", damaged)
    with pytest.raises(InputError, match=r"got nan or inf for 1 of \d+ images: '.*\.png'"):
        imbalance_vlm.run(recipe, {"balancing.second_stage": second_stage})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_whose_weights_are_not_finite_does_not_predict(value: float, recipe: Recipe, images: Path) -> None:
    result = imbalance_vlm.run(recipe)
    assert isinstance(result, RunResult)
    state = load_file(result.path / "head.safetensors")
    name = next(iter(state))
    state[name].view(-1)[1] = value
    save_file(state, result.path / "head.safetensors")
    with pytest.raises(InputError, match=rf"head.safetensors must hold finite weights, got nan or inf in '{name}'"):
        TrainedClassifier.load(result.path)
