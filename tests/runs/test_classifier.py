"""A trained classifier: saved by a run, loaded from its folder, and applied to new images."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from imbalance_vlm import InputError, TrainedClassifier, create_encoder, predict_images
from imbalance_vlm.evaluation.evaluate import logits_of
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs import experiment
from imbalance_vlm.runs.classifier import find_images
from imbalance_vlm.runs.resources import Resources
from tests.runs.running import Recipe, run

CPU = torch.device("cpu")
WEIGHTS = "open_clip_model.safetensors"

CHANGES: dict[str, Recipe] = {
    "linear probe": {},
    "cosine head": {"head": {"name": "cosine", "scale": 16, "init": "text"}},
    "decoder": {"head": {"name": "decoder", "depth": 1}, "training.batch_size": 8, "encoder.cache": False},
    "experts": {"head": "experts", "balancing.loss": "sade"},
    "prototypes": {"head": "prototype"},
    "zero-shot": {"tuning": "zero_shot", "head": "text"},
    "ncm and post-hoc": {
        "balancing.second_stage": "ncm",
        "balancing.post_hoc": {"name": "logit_adjustment", "tau": 1.0},
    },
    "crt": {"balancing.second_stage": {"name": "crt", "epochs": 2}},
    "coop": {"tuning": {"name": "prompt", "method": "coop", "views": 0}, "head": "text"},
    "cocoop": {"tuning": {"name": "prompt", "method": "cocoop", "views": 0}, "head": "text"},
    "promptsrc": {"tuning": {"name": "prompt", "method": "promptsrc"}, "head": "text"},
    "vpt": {"tuning": {"name": "prompt", "method": "vpt", "tokens": 2}, "head": "text"},
    "maple, bf16": {"tuning": {"name": "prompt", "method": "maple"}, "head": "text", "encoder.precision": "bf16"},
    "lora": {"tuning": {"name": "peft", "method": "lora"}, "head": "cosine"},
    "random mask": {"tuning": {"name": "peft", "method": "random_mask"}, "head": "cosine"},
    "full, corrected": {
        "tuning": "full",
        "head": "cosine",
        "balancing.second_stage": "ncm",
        "balancing.post_hoc": {"name": "logit_adjustment", "tau": 1.0},
    },
}


@pytest.fixture
def test_pass(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of the test pass of a run, batch by batch."""
    recorded: list[Tensor] = []
    evaluate = experiment.evaluate

    def record(model: Any, source: Any, evaluators: Any, batch_size: int) -> Any:
        recorded.extend(logits.clone() for logits, _ in logits_of(model, source, batch_size))
        return evaluate(model, source, evaluators, batch_size)

    monkeypatch.setattr(experiment, "evaluate", record)
    return recorded


def loaded_logits(folder: Path, images: Path) -> Tensor:
    with TrainedClassifier.load(folder, CPU) as classifier:
        source = classifier.source(find_images([images / "test"]).images)
        return torch.cat([logits for logits, _ in logits_of(classifier.model, source, 1024)])


# -- the same model --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CHANGES)
def test_loaded_classifier_gives_the_logits_of_the_run(
    name: str, recipe: Recipe, images: Path, test_pass: list[Tensor]
) -> None:
    result = run(recipe, changes=CHANGES[name])
    assert torch.equal(loaded_logits(result.path, images), torch.cat(test_pass))


def test_kept_tokens_differ_by_their_rounding_only(recipe: Recipe, images: Path, test_pass: list[Tensor]) -> None:
    """They are kept in float16; those of new images are computed in float32."""
    result = run(recipe, changes=CHANGES["decoder"] | {"encoder.cache": True})
    torch.testing.assert_close(loaded_logits(result.path, images), torch.cat(test_pass), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["linear probe", "zero-shot", "crt", "cocoop", "vpt", "lora", "random mask"])
def test_predictions_are_those_of_the_run(name: str, recipe: Recipe, images: Path) -> None:
    result = run(recipe, changes=CHANGES[name])
    with (result.path / "predictions.csv").open() as stream:
        expected = {row["image"]: row["predicted"] for row in csv.DictReader(stream)}
    frame = predict_images(result.path, [images / "test"])
    predicted = {
        Path(image).relative_to(images).as_posix(): name
        for image, name in zip(frame["image"], frame["predicted"], strict=True)
    }
    assert predicted == expected
    assert frame["confidence"].between(0, 1).all()


@pytest.mark.parametrize("name", ["linear probe", "zero-shot", "coop", "lora", "ncm and post-hoc"])
def test_a_classifier_is_saved_to_and_loaded_from_any_folder(name: str, recipe: Recipe, images: Path) -> None:
    result = run(recipe, changes=CHANGES[name])
    with TrainedClassifier.load(result.path, CPU) as classifier:
        classifier.save(Path("elsewhere") / "copy")
        predictions = classifier.predict([images / "test"])
    shutil.rmtree(result.path)
    with TrainedClassifier.load("elsewhere/copy", "cpu") as copy:
        assert copy.class_names == classifier.class_names == ("blue car", "green leaf", "red apple", "white cup")
        assert copy.long_tail.counts.tolist() == [6, 12, 24, 3]
        assert copy.predict([images / "test"]).equals(predictions)


def test_groups_of_a_dataset_that_was_thinned_are_loaded(recipe: Recipe) -> None:
    result = run(recipe, changes={"data.tail": "exponential", "data.tail_factor": 4, "data.split_by": "dataset"})
    with TrainedClassifier.load(result.path) as classifier:
        assert classifier.long_tail.group_counts is not None
        assert classifier.long_tail.counts.tolist() == result.record["classes"]["train_counts"]
        groups = {group: len(members) for group, members in classifier.long_tail.groups.items()}
    assert groups == result.record["classes"]["groups"]


def test_a_run_of_an_earlier_version_is_loaded_from_its_result(recipe: Recipe, images: Path) -> None:
    result = run(recipe)
    expected = predict_images(result.path, [images / "test"])
    (result.path / "classes.json").unlink()
    assert predict_images(result.path, [images / "test"]).equals(expected)


# -- the encoder -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tuning", [{"name": "peft", "method": "adaptformer"}, "linear_probe"], ids=["peft", "probe"])
def test_another_encoder_is_refused(tuning: Any, recipe: Recipe, images: Path, tiny_clip: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_clip.removeprefix("local-dir:"), folder)
    result = run(recipe | {"encoder": {"name": f"local-dir:{folder}"}, "tuning": tuning, "head": "cosine"})
    expected = predict_images(result.path, [images / "test"])
    original, weights = (folder / WEIGHTS).read_bytes(), load_file(folder / WEIGHTS)
    save_file({name: value + 0.01 for name, value in weights.items()}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"head\.safetensors was trained on another base model") as error:
        predict_images(result.path, [images / "test"])
    with safe_open(result.path / "head.safetensors", "pt") as file:
        before = json.loads(file.metadata()["imbalance_vlm"])["base"]
    after = create_encoder(f"local-dir:{folder}").fingerprint
    assert before != after
    for words in (before, after, "put back the weights"):
        assert words in str(error.value)
    (folder / WEIGHTS).write_bytes(original)
    assert predict_images(result.path, [images / "test"]).equals(expected)


def test_first_pass_on_another_encoder_is_not_reused(recipe: Recipe, tiny_clip: str) -> None:
    change = {
        "tuning": {"name": "prompt", "method": "coop", "n_ctx": 2, "init": None, "views": 0},
        "head": "text",
        "training.epochs": 2,
        "balancing.gradient": {"name": "subspace", "keep": 2, "rank": 1},
    }
    first = run(recipe, changes=change)
    again = {"balancing.gradient": {"name": "subspace", "keep": 2, "rank": 1, "reuse": str(first.path)}}
    with pytest.raises(InputError, match=r"head\.safetensors was trained on another base model"):
        run(recipe, changes=change | again | {"encoder": {"name": tiny_clip, "pretrained": "random"}})


@pytest.mark.parametrize("name", ["lora", "full, corrected", "vpt"])
def test_the_encoder_is_given_back_as_it_was(name: str, recipe: Recipe, images: Path) -> None:
    result = run(recipe, changes=CHANGES[name])
    resources = Resources()
    encoder = resources.encoder(plan(recipe, CHANGES[name]).recipes[0]["encoder"], CPU)
    before = {key: value.clone() for key, value in encoder.module.state_dict().items()}
    pixels = torch.rand(2, 3, 16, 16)
    features = encoder.image_features(pixels, "embedding")
    with TrainedClassifier.load(result.path, CPU, resources) as classifier:
        assert classifier.encoder is encoder
        classifier.predict([images / "test"])
    after = encoder.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(encoder.image_features(pixels, "embedding"), features)


def test_the_encoder_is_given_back_when_loading_fails(recipe: Recipe) -> None:
    result = run(recipe, changes=CHANGES["lora"])
    (result.path / "head.safetensors").write_bytes(b"damaged")
    resources = Resources()
    encoder = resources.encoder(plan(recipe).recipes[0]["encoder"], CPU)
    names = list(encoder.module.state_dict())
    with pytest.raises(InputError, match=r"head\.safetensors is not a safetensors file"):
        TrainedClassifier.load(result.path, CPU, resources)
    assert list(encoder.module.state_dict()) == names


# -- bad input -------------------------------------------------------------------------------------------------------
def test_bad_images_and_folders_are_refused_before_the_encoder_is_loaded(
    recipe: Recipe, tiny_clip: str, tmp_path: Path
) -> None:
    encoder = shutil.copytree(tiny_clip.removeprefix("local-dir:"), tmp_path / "encoder")
    result = run(recipe | {"encoder": {"name": f"local-dir:{encoder}"}})
    shutil.rmtree(encoder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="finished run"):
        predict_images(tmp_path, [tmp_path])
    with pytest.raises(InputError, match="no such image"):
        predict_images(result.path, [tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no images \(.*\.png.*\) in "):
        predict_images(result.path, [tmp_path / "empty"])
    with pytest.raises(InputError, match="1 image cannot be read"):
        predict_images(result.path, [tmp_path / "bad.png"])


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"names": 5}', '{"names": ["a"], "train_counts": "12"}', "[]"],
    ids=lambda text: text[:20],
)
def test_damaged_classes_are_refused_with_the_remedy(content: str, recipe: dict[str, Any], images: Path) -> None:
    result = run(recipe)
    (result.path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=r"classes\.json .*; run the recipe again with --force"):
        predict_images(result.path, [images / "test"])
