"""Prompt methods in whole runs."""

from __future__ import annotations

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
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.training.checkpoints import load_weights
from tests.killing import interrupted_before_epoch
from tests.tuning.prompt.text_models import context_of, head_of

PROMPTED = {"head": "text", "training.epochs": 2, "training.batch_size": 16}


def tuned(name: str, **settings: Any) -> dict[str, Any]:
    start = {"tokens": 2, "views": 1} if name in SAVED else {"n_ctx": 2, "init": None, "views": 1}
    if name == "maple":
        start = {"views": 1}
    return PROMPTED | {"tuning": {"name": "prompt", "method": name} | start | settings}


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


SAVED = {
    "vpt": {"inner.weight": (4, 16)} | {f"tower.transformer.resblocks.{i}.vpt.tokens": (2, 32) for i in range(2)},
    "ivlp": {"context": (2, 16), "deep": (1, 2, 16), "tokens": (2, 2, 32)},
    "promptsrc": {"context": (4, 16), "deep": (1, 4, 16), "tokens": (2, 2, 32)},
    "maple": {"context": (2, 16), "deep": (1, 2, 16)}
    | {f"couplings.{i}.{key}": shape for i in range(2) for key, shape in (("weight", (32, 16)), ("bias", (32,)))},
}


@pytest.mark.parametrize("name", catalogue.PROMPTS.names())
def test_a_run_trains_and_saves_the_prompt(recipe: dict[str, Any], name: str) -> None:
    result = run(recipe, tuned(name))
    assert (result.path / "result.json").is_file()
    losses = [json.loads(line)["loss"] for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    saved = weights(result.path)
    if name in SAVED:
        assert {key: tuple(value.shape) for key, value in saved.items()} == SAVED[name]
        trained = sum(value.numel() for key, value in saved.items() if key != "inner.weight")
    else:
        head = head_of(name, n_ctx=2, context=context_of(class_names=("a", "b", "c", "d"))).float()
        load_weights(result.path / "head.safetensors", head)
        trained = sum(parameter.numel() for parameter in head.parameters())
    assert result.record["cost"]["trainable_parameters"] == trained


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "head.safetensors")


SUBSPACE = {"name": "subspace", "keep": 3, "rank": 1}


@pytest.mark.parametrize(
    ("name", "gradient"),
    [("coop", SUBSPACE), ("cocoop", None), ("prograd", None), ("vpt", None), ("maple", None), ("promptsrc", None)],
    ids=["subpt", "cocoop", "prograd", "vpt", "maple", "promptsrc"],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(recipe: dict[str, Any], name: str, gradient: Any) -> None:
    change = tuned(name) | {"training.epochs": 4, "training.checkpoint_seconds": 0, "balancing.gradient": gradient}
    through = run(recipe, change)
    wanted = weights(through.path)
    shutil.rmtree(through.path)
    with interrupted_before_epoch(3):  # the first pass of subpt, of three epochs, ends before
        run(recipe, change)
    assert (through.path / "checkpoint.pt").is_file()
    resumed = run(recipe, change)
    assert weights(resumed.path).keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in weights(resumed.path).items())
    np.testing.assert_equal(resumed.scores, through.scores)


def test_a_moving_average_and_a_second_stage(recipe: dict[str, Any]) -> None:
    changes = {"training.ema": 0.5, "training.epochs": 1, "balancing.second_stage": {"name": "tau_norm", "tau": 0.5}}
    assert np.isfinite(run(recipe, tuned("vpt") | changes).scores["overall"])


def test_subpt_can_reuse_the_first_pass_of_a_finished_run(recipe: dict[str, Any]) -> None:
    change = tuned("coop") | {"training.epochs": 4}
    first = run(recipe, change | {"balancing.gradient": SUBSPACE})
    assert len(list((first.path / "first_pass").glob("epoch_*.safetensors"))) == 3
    second = run(recipe, change | {"balancing.gradient": SUBSPACE | {"reuse": str(first.path)}})
    assert not (second.path / "first_pass").exists()
    assert torch.equal(weights(first.path)["context"], weights(second.path)["context"])
    plain = weights(run(recipe, change).path)
    assert not torch.equal(weights(first.path)["context"], plain["context"])
