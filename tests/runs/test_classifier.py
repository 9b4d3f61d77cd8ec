"""A trained run applied to new images."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imbalance_vlm import InputError, create_encoder, predict_images, run
from imbalance_vlm.cli import main

WEIGHTS = "open_clip_model.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head": {"name": "cosine", "scale": 16}},
        {"head": {"name": "decoder", "depth": 1}, "training.batch_size": 8},
        {"tuning": "zero_shot", "head": "text"},
        {"balancing.second_stage": "ncm", "balancing.post_hoc": {"name": "logit_adjustment", "tau": 1.0}},
        {"balancing.second_stage": {"name": "crt", "epochs": 2}},
        {"tuning": {"name": "prompt", "method": "vpt", "tokens": 2}, "head": "text"},
        {"tuning": {"name": "prompt", "method": "maple"}, "head": "text", "encoder.precision": "bf16"},
        {"tuning": {"name": "peft", "method": "random_mask"}, "head": "cosine"},
    ],
    ids=["linear", "cosine", "decoder", "text", "ncm and post-hoc", "crt", "vpt", "maple, bf16", "random mask"],
)
def test_says_of_the_test_images_what_the_run_said(
    recipe: dict[str, Any], images: Path, change: dict[str, Any]
) -> None:
    result = run(recipe, change)
    with (result.path / "predictions.csv").open() as stream:
        said = {row["image"]: row["predicted"] for row in csv.DictReader(stream)}
    found = predict_images(result.path, [images / "test"])
    assert {
        Path(i).relative_to(images).as_posix(): p for i, p in zip(found.image, found.predicted, strict=True)
    } == said
    assert found.confidence.between(0, 1).all()


def test_the_command_writes_a_file(recipe: dict[str, Any], images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(recipe)
    image = next((images / "test").rglob("*.png"))
    assert main(["predict", str(result.path), str(image)]) == 0
    assert capsys.readouterr().out.startswith("image,predicted,confidence\n")
    assert main(["predict", str(result.path), str(image), "--out", "said.csv"]) == 0
    assert len(Path("said.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("tuning", [{"name": "peft", "method": "adaptformer"}, "linear_probe"])
def test_a_run_is_not_applied_to_another_base_model(
    tuning: Any, recipe: dict[str, Any], images: Path, tiny_clip: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_clip.removeprefix("local-dir:"), folder)
    result = run(recipe | {"encoder": {"name": f"local-dir:{folder}"}, "tuning": tuning, "head": "cosine"})
    said = predict_images(result.path, [images / "test"])
    kept, weights = (folder / WEIGHTS).read_bytes(), load_file(folder / WEIGHTS)
    save_file({name: value + 0.01 for name, value in weights.items()}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"head\.safetensors was trained on another base model") as error:
        predict_images(result.path, [images / "test"])
    with safe_open(result.path / "head.safetensors", "pt") as file:
        before = json.loads(file.metadata()["imbalance_vlm"])["base"]
    after = create_encoder(f"local-dir:{folder}").fingerprint
    assert before != after
    for wanted in (before, after, "put back the weights"):
        assert wanted in str(error.value)
    (folder / WEIGHTS).write_bytes(kept)
    assert predict_images(result.path, [images / "test"]).equals(said)


def test_a_first_pass_on_another_base_model_is_not_reused(recipe: dict[str, Any], tiny_clip: str) -> None:
    change = {
        "tuning": {"name": "prompt", "method": "coop", "n_ctx": 2, "init": None, "views": 0},
        "head": "text",
        "training.epochs": 2,
        "balancing.gradient": {"name": "subspace", "keep": 2, "rank": 1},
    }
    first = run(recipe, change)
    again = {"balancing.gradient": {"name": "subspace", "keep": 2, "rank": 1, "reuse": str(first.path)}}
    with pytest.raises(InputError, match="head.safetensors was trained on another base model"):
        run(recipe, change | again | {"encoder": {"name": tiny_clip, "pretrained": "random"}})


def test_bad_input_is_refused_in_words(recipe: dict[str, Any], tmp_path: Path) -> None:
    result = run(recipe)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="finished run"):
        predict_images(tmp_path, [tmp_path])
    with pytest.raises(InputError, match="no such image"):
        predict_images(result.path, [tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no images"):
        predict_images(result.path, [tmp_path / "empty"])
    with pytest.raises(InputError, match="1 images? cannot be read"):
        predict_images(result.path, [tmp_path / "bad.png"])
