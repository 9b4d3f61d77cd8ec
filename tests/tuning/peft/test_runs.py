"""Tuning of the image tower by a recipe: what is trained, what stays as it was, and what is reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import imbalance_vlm
from imbalance_vlm import InputError
from imbalance_vlm.encoders.base import Encoder, weights_fingerprint
from imbalance_vlm.heads.cosine import CosineHead
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.runs import splits
from imbalance_vlm.runs.experiment import run_recipe
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.tuning.tower_head import TowerHead
from tests.tuning.peft.tiny_towers import SECTIONS, make_tuning

Recipe = dict[str, Any]
ZERO_INITIALISED = [name for name in SECTIONS if name != "vpt"]
every = pytest.mark.parametrize("name", SECTIONS)


def run(recipe: Recipe, *overrides: str, **how: Any) -> RunResult:
    result = imbalance_vlm.run(recipe, overrides, device="cpu", **how)
    assert isinstance(result, RunResult)
    return result


def tuned_recipe(recipe: Recipe, name: str, **more: Any) -> Recipe:
    """One epoch of a cosine head on a tuned tower."""
    training = {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}}
    return recipe | {"tuning": SECTIONS[name], "head": {"name": "cosine"}, "training": training} | more


class SharedEncoder:
    """An encoder that several runs share, as those of a study do, and the runs themselves."""

    def __init__(self, recipe: Recipe) -> None:
        self.resources = Resources()
        (complete,) = plan(recipe).recipes
        self.encoder: Encoder = self.resources.encoder(complete["encoder"], torch.device("cpu"))
        self.fingerprint = weights_fingerprint(self.encoder.module)

    def run(self, recipe: Recipe, runs: str = "runs") -> RunResult:
        (complete,) = plan(recipe).recipes
        folder = Path(runs) / "run"  # saved weights hold its name
        folder.mkdir(parents=True, exist_ok=True)
        result = run_recipe(complete, folder, torch.device("cpu"), self.resources)
        assert self.resources.encoder(complete["encoder"], torch.device("cpu")) is self.encoder
        return result

    def is_untouched(self) -> bool:
        return weights_fingerprint(self.encoder.module) == self.fingerprint


@every
def test_a_run_trains_the_tower_and_restores_the_shared_encoder(recipe: Recipe, name: str) -> None:
    wanted = tuned_recipe(recipe, name)
    shared = SharedEncoder(wanted)
    module = shared.encoder.module
    before = list(module.state_dict())
    result = shared.run(wanted)
    assert list(module.state_dict()) == before
    assert shared.is_untouched()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())

    tuned = make_tuning(name).method.apply(module, 4)
    head = CosineHead(shared.encoder.width("embedding"), 4)
    count = tuned.count() + head.weight.numel()
    names = {f"tower.{key}" for key in tuned.values()} | {f"inner.{key}" for key in head.state_dict()}
    start = {f"tower.{key}": value for key, value in tuned.values().items()}
    tuned.remove()
    assert result.record["cost"]["trainable_parameters"] == count
    saved = load_file(result.path / "head.safetensors")
    assert set(saved) == names, "what was trained and nothing else"
    if name not in ("random_mask", "vpt", "lora", "adapter", "adaptformer"):  # these start from random numbers
        moved = [key for key, value in start.items() if not torch.equal(saved[key], value)]
        assert moved, "the tower did not change"
    assert result.record["identity"]["tuning"] == SECTIONS[name]["name"]


@pytest.mark.parametrize(
    ("name", "head"),
    [*((name, "cosine") for name in ZERO_INITIALISED), ("adaptformer", "decoder"), ("full", "decoder")],
)
def test_a_learning_rate_near_zero_gives_the_linear_probe(recipe: Recipe, name: str, head: str) -> None:
    training = {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 1e-12}}
    same = {"head": {"name": head, "init": "text"}, "training": training, "encoder": recipe["encoder"]}
    section = SECTIONS[name] | ({"kl": 0.0} if name == "full" else {})
    probe, tuned = (
        run(recipe | same | {"tuning": tuning}) for tuning in ({"name": "linear_probe"}, section | {"crops": "none"})
    )
    keys = ("overall", "many", "medium", "few", "nll")
    tolerance = 1e-3 if head == "decoder" else 1e-5  # the cache keeps tokens in half precision
    np.testing.assert_allclose([tuned.scores[key] for key in keys], [probe.scores[key] for key in keys], rtol=tolerance)


@pytest.mark.parametrize("name", ["adaptformer", "random_mask", "full"])
def test_the_seed_decides_all_numbers(recipe: Recipe, name: str) -> None:
    wanted = tuned_recipe(recipe, name)
    first, second = run(wanted, runs="a"), run(wanted, runs="b")
    assert (first.path / "head.safetensors").read_bytes() == (second.path / "head.safetensors").read_bytes()
    np.testing.assert_equal(first.scores, second.scores)
    other = run(wanted, "seed=1", runs="a")
    assert not torch.equal(*(load_file(r.path / "head.safetensors")["inner.weight"] for r in (first, other)))


@pytest.mark.parametrize("name", ["adaptformer", "lora", "random_mask", "vpt", "full"])
def test_an_interrupted_run_resumes_and_ends_with_the_same_weights(
    recipe: Recipe, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tuned_recipe(recipe, name)
    wanted["training"] |= {"epochs": 3, "checkpoint_seconds": 0, "ema": 0.9}
    shared, steps, embed = SharedEncoder(wanted), [0], TowerHead.embed
    undisturbed = shared.run(wanted, "undisturbed")

    def interrupted(head: TowerHead, features: Tensor) -> Tensor:
        steps[0] += 1
        if steps[0] == 6:
            raise KeyboardInterrupt
        return embed(head, features)

    with monkeypatch.context() as patch:
        patch.setattr(TowerHead, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared.run(wanted, "interrupted")
    assert Path("interrupted/run/checkpoint.pt").is_file()
    assert shared.is_untouched()
    resumed = shared.run(wanted, "interrupted")
    assert steps[0] == 6
    assert (resumed.path / "head.safetensors").read_bytes() == (undisturbed.path / "head.safetensors").read_bytes()
    np.testing.assert_equal(resumed.scores, undisturbed.scores)


@pytest.mark.parametrize(
    "more",
    [
        {"head": {"name": "decoder", "depth": 1}, "balancing": {"loss": "logit_adjustment", "sampler": "class_aware"}},
        {"head": "linear", "balancing": {"loss": "paco", "second_stage": "crt"}},
        {"head": {"name": "text"}, "balancing": {"loss": "ldam"}} | {"head": {"name": "cosine"}},
        {"head": {"name": "prototype", "assign": "text"}, "balancing": {"loss": "vs"}},
        {"encoder": {"features": "class_token"}, "balancing": {"loss": "focal", "sampler": "class_balanced"}},
        {"encoder": {"precision": "bf16"}},
    ],
    ids=["decoder", "second stage", "cosine units", "prototypes", "class token", "bf16"],
)
def test_heads_losses_samplers_and_second_stages_work_on_a_tuned_tower(recipe: Recipe, more: Recipe) -> None:
    wanted = tuned_recipe(recipe, "lora", **(more | {"encoder": recipe["encoder"] | more.get("encoder", {})}))
    assert 0 <= run(wanted).scores["overall"] <= 100


@pytest.mark.parametrize("name", ["full", "partial"])
def test_convolutional_networks_are_tuned(recipe: Recipe, name: str) -> None:
    wanted = tuned_recipe(recipe, name, encoder={"name": "timm:test_resnet", "pretrained": "random"})
    wanted["head"] = {"name": "linear", "init": "class_mean"}
    shared = SharedEncoder(wanted)
    shared.run(wanted)
    assert shared.is_untouched(), "including the statistics of its norms"


def test_a_failed_run_restores_the_encoder(recipe: Recipe) -> None:
    wanted = tuned_recipe(recipe, "ssf")
    wanted["training"] |= {"optimizer": {"name": "sgd", "lr": 1e38}, "epochs": 3}
    shared = SharedEncoder(wanted)
    with pytest.raises(InputError, match="training loss became"):
        shared.run(wanted)
    assert shared.is_untouched()
    assert shared.run(tuned_recipe(recipe, "lora"), "next").scores["overall"] >= 0


def test_an_interpolated_run_lies_between_start_and_end(recipe: Recipe) -> None:
    """Tower and head, as saved in the folder of the run."""
    wanted = tuned_recipe(recipe, "full")
    wanted["tuning"] = {"name": "full"}
    start, half, end = (
        load_file(run(wanted, change, runs=runs).path / "head.safetensors")
        for change, runs in (
            ("training.optimizer.lr=1e-30", "start"),
            ("training.interpolation=0.5", "half"),
            ("training.interpolation=1.0", "end"),
        )
    )
    for name, value in half.items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2, msg=name)
    assert not any(torch.allclose(half[name], end[name]) for name in ("inner.weight", "tower.ln_post.weight"))


def test_the_learning_rate_decays_towards_the_input(recipe: Recipe) -> None:
    """With a factor of 1e-4 for each layer, the first ones do not move."""
    wanted = tuned_recipe(recipe, "full") | {"tuning": {"name": "full", "lr_decay": 1e-4}}
    saved = load_file(run(wanted).path / "head.safetensors")
    start = SharedEncoder(wanted).encoder.module.visual.state_dict()
    moved = {name for name in start if (saved.get(f"tower.{name}", start[name]) - start[name]).abs().max() > 1e-6}
    assert {"ln_post.weight", "ln_post.bias"} <= moved
    assert not [name for name in moved if name.startswith(("conv1", "ln_pre", "class_embedding", "positional"))]


def test_resized_copies_do_not_change_the_numbers_of_a_run(recipe: Recipe) -> None:
    """Neither for a tower that is trained nor for features that are cached; the images are PNG files of 20 pixels."""
    for tuning in ({"name": "peft", "method": "bitfit", "crops": "none"}, "linear_probe"):
        wanted = tuned_recipe(recipe, "bitfit") | {"tuning": tuning}
        plain, copies = (run(wanted, f"encoder.resized={size}", runs=f"{size}") for size in (0, 16))
        assert copies.scores == plain.scores
        both = [load_file(result.path / "head.safetensors") for result in (plain, copies)]
        assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
        assert list(Path("cache/images/16").rglob("*.npy"))


def test_the_decoder_of_a_recipe_reads_the_images(recipe: Recipe) -> None:
    """torchvision's is near PIL's, and on a machine without a GPU it is the GPU's."""
    wanted = tuned_recipe(recipe, "bitfit")
    wanted["tuning"]["crops"] = "none"
    pil, other, gpu = (run(wanted, f"encoder.decoder={decoder}") for decoder in ("pil", "torchvision", "gpu"))
    assert other.scores["nll"] == pytest.approx(pil.scores["nll"], rel=0.02)
    assert other.scores["nll"] != pil.scores["nll"]
    if not torch.cuda.is_available():
        assert gpu.scores == other.scores


@pytest.mark.parametrize("tuning", [{"name": "peft", "method": "vpt"}, "linear_probe"])
def test_test_time_crops_change_the_scores_of_heads_on_images_and_on_features(recipe: Recipe, tuning: Any) -> None:
    wanted = tuned_recipe(recipe, "vpt") | {"tuning": tuning}
    single, crops, both = (run(wanted, f"evaluation.tta={tta}") for tta in ("none", "five_crops", "five_crops_flips"))
    assert len({result.scores["nll"] for result in (single, crops, both)}) == 3
    with pytest.raises(InputError, match="evaluation.tta"):
        run(wanted, "evaluation.tta=five_crops_flips", "data.flips=false")


def test_prototypes_of_a_regularizer_are_those_of_the_untouched_tower(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made after the head, when `vpt` is already in the tower."""
    directions: list[Tensor] = []
    make_directions = splits.class_mean_directions

    def recorded(*args: Any) -> Tensor:
        directions.append(make_directions(*args))
        return directions[-1]

    monkeypatch.setattr(splits, "class_mean_directions", recorded)
    terms = {"loss": "cross_entropy", "regularizers": [{"name": "prototype_contrastive", "assign": "class_mean"}]}
    head = {"name": "cosine", "adapter": 8}
    run(tuned_recipe(recipe, "vpt", balancing=terms, head=head))
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", str(Path("another_cache").absolute()))
    run(recipe | {"tuning": "linear_probe", "balancing": terms, "head": head})
    assert torch.equal(*directions)
