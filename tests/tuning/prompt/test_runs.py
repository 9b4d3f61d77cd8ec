"""Prompt methods on the text side in whole runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from imbalance_vlm import run
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.sources import ImageSource
from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.training.checkpoints import load_weights
from tests.tuning.prompt.contexts import tuning_of
from tests.tuning.prompt.text_models import context_of, head_of, no_plain_head

PROMPTED = {"head": "text", "training.epochs": 2, "training.batch_size": 16}


def tuned(name: str, **settings: Any) -> dict[str, Any]:
    return PROMPTED | {"tuning": {"name": "prompt", "method": name, "n_ctx": 2, "init": None, "views": 1} | settings}


@pytest.mark.parametrize("name", ["coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc"])
@pytest.mark.parametrize("names", ["base", "novel", "external"])
def test_a_recipe_can_anchor_any_learned_text(recipe: dict[str, Any], name: str, names: str) -> None:
    anchor = {"name": "text_anchor", "names": names, "external": 3}
    method = {"tuning": {"name": "prompt", "method": name, "n_ctx": 2, "init": None}, "training.epochs": 1}
    classes = {"data.classes": "base" if names == "novel" else "all"}
    result = run(recipe, PROMPTED | method | classes | {"balancing.regularizers": [anchor]})
    assert np.isfinite(result.scores["overall"])
    shown = "text_anchor" + " (novel names: label-space transductive)" * (names == "novel")
    assert result.record["identity"]["balancing"] == f"balanced_softmax + {shown}"


@pytest.mark.parametrize("name", ["coop", "vpt"])
def test_a_loss_on_cosines_has_the_scale_of_the_prompt_head(recipe: dict[str, Any], name: str) -> None:
    change = {"tuning": {"name": "prompt", "method": name}, "head": "text", "training.epochs": 1}
    scale = create_encoder(recipe["encoder"]["name"]).logit_scale
    assert scale == pytest.approx(14.2857, rel=1e-4)
    unset, same, other = (
        json.loads((run(recipe, change | {"balancing.loss": loss}).path / "metrics.jsonl").read_text())["loss"]
        for loss in ("ldam", {"name": "ldam", "head_scale": scale}, {"name": "ldam", "head_scale": 25.0})
    )
    assert unset == same != other


@pytest.mark.parametrize("name", ["coop", "cocoop", "kgcoop", "prograd"])
def test_a_run_trains_and_saves_the_prompt(recipe: dict[str, Any], name: str) -> None:
    result = run(recipe, tuned(name))
    assert (result.path / "result.json").is_file()
    losses = [json.loads(line)["loss"] for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    head = head_of(name, n_ctx=2, on=context_of(class_names=("a", "b", "c", "d"))).float()
    load_weights(Path(result.path) / "head.safetensors", head)
    assert result.record["cost"]["trainable_parameters"] == sum(p.numel() for p in head.parameters())


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "head.safetensors")


SUBSPACE = {"name": "subspace", "keep": 3, "rank": 1}


@pytest.mark.parametrize(
    ("name", "gradient"), [("coop", SUBSPACE), ("cocoop", None), ("prograd", None)], ids=["subpt", "cocoop", "prograd"]
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    recipe: dict[str, Any], name: str, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = tuned(name) | {"training.epochs": 4, "training.checkpoint_seconds": 0, "balancing.gradient": gradient}
    through = run(recipe, change)
    wanted = weights(through.path)
    shutil.rmtree(through.path)
    epoch = InstanceSampler.epoch

    def stop(self: InstanceSampler, number: int, epochs: int) -> Tensor:
        if number == 3:  # the first pass keeps three epochs, and ends before
            raise KeyboardInterrupt
        return epoch(self, number, epochs)

    monkeypatch.setattr(InstanceSampler, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, change)
    monkeypatch.setattr(InstanceSampler, "epoch", epoch)
    assert (through.path / "checkpoint.pt").is_file()
    resumed = weights(run(recipe, change).path)
    assert resumed.keys() == wanted.keys()
    assert all(torch.equal(resumed[key], wanted[key]) for key in wanted)


def test_subpt_can_reuse_the_first_pass_of_a_finished_run(recipe: dict[str, Any]) -> None:
    change = tuned("coop") | {"training.epochs": 4}
    first = run(recipe, change | {"balancing.gradient": SUBSPACE})
    assert len(list((first.path / "first_pass").glob("epoch_*.safetensors"))) == 3
    second = run(recipe, change | {"balancing.gradient": SUBSPACE | {"reuse": str(first.path)}})
    assert not (second.path / "first_pass").exists()
    assert torch.equal(weights(first.path)["context"], weights(second.path)["context"])
    plain = weights(run(recipe, change).path)
    assert not torch.equal(weights(first.path)["context"], plain["context"])


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_a_new_head_with_the_saved_weights_predicts_what_the_run_predicted(recipe: dict[str, Any], name: str) -> None:
    """What `predict` does, with the images of the test split."""
    result = run(recipe, tuned(name))
    names = result.record["classes"]["names"]
    encoder = create_encoder(recipe["encoder"]["name"])
    on = context_of(encoder=encoder, class_names=names)
    torch.manual_seed(99)  # not the run's
    head = tuning_of(name, n_ctx=2, init=None).head(on, no_plain_head)
    load_weights(result.path / "head.safetensors", head)
    data = create_dataset(**recipe["data"])
    source = ImageSource(data.splits["test"], encoder, "embedding", [encoder.preprocessing], torch.device("cpu"))
    with (result.path / "predictions.csv").open() as stream:
        predicted = [row["predicted"] for row in csv.DictReader(stream)]
    assert [names[label] for label in predict(head, source).predicted] == predicted
