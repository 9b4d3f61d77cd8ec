"""Tuning the tower from a recipe: what is trained, what is left alone, what is the same again."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from imbalance_vlm.tuning.minimalist import SquareCrop
from imbalance_vlm.tuning.tuned_tower import TunedTower
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import imbalance_vlm
from imbalance_vlm import InputError, assembly, catalogue, create_encoder
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.distill import Distill, divergence
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.encoders.base import Encoder, weights_fingerprint
from imbalance_vlm.encoders.features import CroppedView
from imbalance_vlm.heads.cosine import CosineHead
from imbalance_vlm.heads.decoder import DecoderHead
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training.optimizers import adamw, parameter_groups, sgd
from imbalance_vlm.training.schedules import constant, cosine, held_cosine, multistep
from imbalance_vlm.tuning.base import Task, Tuning
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.tuning import FullTuning, PeftTuning, of_recipe

Recipe = dict[str, Any]
NAMES = ("red apple", "green leaf", "blue car", "white cup")
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": "peft", "method": name} for name in catalogue.PEFT.names()},
    "full": {"name": "full", "lr_decay": 0.5, "kl": 0.5},
}
ZERO_INITIALISED = [name for name in METHODS if name != "vpt"]
every = pytest.mark.parametrize("name", METHODS)


def run(recipe: Recipe, *overrides: str, **how: Any) -> RunResult:
    result = imbalance_vlm.run(recipe, overrides, device="cpu", **how)
    assert isinstance(result, RunResult)
    return result


def tuned_recipe(recipe: Recipe, name: str, **more: Any) -> Recipe:
    """One epoch of a cosine head on a tuned tower."""
    training = {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}}
    return recipe | {"tuning": METHODS[name], "head": {"name": "cosine"}, "training": training} | more


def shared_encoder(recipe: Recipe) -> Encoder:
    """The encoder that the runs of this recipe share."""
    from imbalance_vlm.encoders.factory import encoder_identity
    from imbalance_vlm.recipe.study import plan

    (full,) = plan(recipe).recipes
    settings, device = assembly.encoder_settings(full), torch.device("cpu")
    return assembly.encoder(assembly.as_key(settings), encoder_identity(full["encoder"]), device)


def task_of(encoder: Encoder, kind: str = "embedding", epochs: int = 3, flips: bool = False) -> Task:
    return Task(encoder, kind, NAMES, (), ("a photo of a {}.",), torch.device("cpu"), epochs, 0, flips)


def build(name: str, **settings: Any) -> Tuning:
    entry = catalogue.TUNINGS.get(METHODS[name]["name"]).member(METHODS[name])
    made = entry.load()(**settings)
    assert isinstance(made, Tuning)
    return made


@pytest.fixture
def encoder(tiny_clip: str) -> Encoder:
    made = create_encoder(tiny_clip)
    made.module.requires_grad_(False)
    return made


@pytest.fixture(autouse=True)
def _own_encoders() -> Iterator[None]:
    assembly.encoder.cache_clear()
    yield
    assembly.encoder.cache_clear()


# -- from a recipe -----------------------------------------------------------------------------------------------------


@every
def test_a_recipe_trains_it_and_the_shared_encoder_stays_as_it_was(recipe: Recipe, name: str) -> None:
    wanted = tuned_recipe(recipe, name)
    net = shared_encoder(wanted)
    before, fingerprint = list(net.module.state_dict()), weights_fingerprint(net.module)
    result = run(wanted)
    assert shared_encoder(wanted) is net
    assert list(net.module.state_dict()) == before
    assert weights_fingerprint(net.module) == fingerprint
    assert not any(parameter.requires_grad for parameter in net.module.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.module.modules())

    tuning = build(name)
    assert isinstance(tuning, PeftTuning)
    tuned = tuning.method.apply(net.module, 4)
    head = CosineHead(net.width("embedding"), 4)
    count = tuned.count() + head.weight.numel()
    names = {f"tower.{key}" for key in tuned.state()} | {f"inner.{key}" for key in head.state_dict()}
    start = {f"tower.{key}": value for key, value in tuned.state().items()}
    tuned.remove()
    assert result.record["cost"]["trainable_parameters"] == count
    saved = load_file(result.path / "head.safetensors")
    assert set(saved) == names, "what was trained and nothing else"
    if name not in ("random_mask", "vpt", "lora", "adapter", "adaptformer"):  # these start from random numbers
        moved = [key for key, value in start.items() if not torch.equal(saved[key], value)]
        assert moved, "the tower did not move"
    assert result.record["identity"]["tuning"] == METHODS[name]["name"]


@pytest.mark.parametrize(
    ("name", "head"),
    [*((name, "cosine") for name in ZERO_INITIALISED), ("adaptformer", "decoder"), ("full", "decoder")],
)
def test_at_a_rate_near_zero_it_is_the_linear_probe(recipe: Recipe, name: str, head: str) -> None:
    training = {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 1e-12}}
    same = {"head": {"name": head, "init": "text"}, "training": training, "encoder": recipe["encoder"]}
    section = METHODS[name] | ({"kl": 0.0} if name == "full" else {})
    probe, tuned = (
        run(recipe | same | {"tuning": tuning}) for tuning in ({"name": "linear_probe"}, section | {"crops": "none"})
    )
    keys = ("overall", "many", "medium", "few", "nll")
    tolerance = 1e-3 if head == "decoder" else 1e-5  # the cache keeps tokens in half precision
    np.testing.assert_allclose([tuned.scores[key] for key in keys], [probe.scores[key] for key in keys], rtol=tolerance)


@pytest.mark.parametrize("name", ["adaptformer", "random_mask", "full"])
def test_one_seed_gives_one_set_of_numbers(recipe: Recipe, name: str) -> None:
    wanted = tuned_recipe(recipe, name)
    first, second = run(wanted, runs="a"), run(wanted, runs="b")
    assert (first.path / "head.safetensors").read_bytes() == (second.path / "head.safetensors").read_bytes()
    np.testing.assert_equal(first.scores, second.scores)
    other = run(wanted, "seed=1", runs="a")
    assert not torch.equal(*(load_file(r.path / "head.safetensors")["inner.weight"] for r in (first, other)))


def kill_when(path: Path, ready: Callable[[], bool]) -> None:
    """Start the recipe in a process of its own and `kill -9` it as soon as `ready()`."""
    command = [sys.executable, "-m", "imbalance_vlm", "run", str(path), "--runs", "killed", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, f"it ended too early: {process.communicate()[0].decode()}"
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["adaptformer", "random_mask", "vpt", "full"])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_weights(
    recipe: Recipe, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tuned_recipe(recipe, name)
    wanted["training"] |= {"epochs": 3, "checkpoint_seconds": 0, "ema": 0.9}
    undisturbed = run(wanted, runs="undisturbed")
    net, steps, embed = shared_encoder(wanted), [0], TunedTower.embed
    before = weights_fingerprint(net.module)

    def interrupted(head: TunedTower, features: Tensor) -> Tensor:
        steps[0] += 1
        if steps[0] == 6:
            raise KeyboardInterrupt
        return embed(head, features)

    with monkeypatch.context() as patch:
        patch.setattr(TunedTower, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(wanted, runs="interrupted")
    assert list(Path("interrupted").rglob("checkpoint.pt"))
    assert weights_fingerprint(net.module) == before
    resumed = run(wanted, runs="interrupted")
    assert steps[0] == 6
    assert (resumed.path / "head.safetensors").read_bytes() == (undisturbed.path / "head.safetensors").read_bytes()
    np.testing.assert_equal(resumed.scores, undisturbed.scores)


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    wanted = tuned_recipe(recipe, "lora")
    wanted["training"] |= {"epochs": 12, "checkpoint_seconds": 0}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(wanted))

    def in_the_middle() -> bool:
        return bool(list(Path("killed").rglob("checkpoint.pt")))

    kill_when(path, in_the_middle)
    assert list(Path("killed").rglob("checkpoint.pt"))
    assert not list(Path("killed").rglob("result.json"))
    resumed, undisturbed = run(wanted, runs="killed"), run(wanted, runs="undisturbed")
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
def test_heads_losses_samplers_and_second_stages_stand_behind_a_tuned_tower(recipe: Recipe, more: Recipe) -> None:
    wanted = tuned_recipe(recipe, "lora", **(more | {"encoder": recipe["encoder"] | more.get("encoder", {})}))
    assert 0 <= run(wanted).scores["overall"] <= 100


def test_towers_without_the_parts_are_refused_in_words(recipe: Recipe) -> None:
    wanted = tuned_recipe(recipe, "adaptformer", encoder={"name": "timm:test_resnet", "pretrained": "random"})
    wanted["head"] = "linear"
    with pytest.raises(InputError, match="'adaptformer' needs a vision transformer .* methods 'full' and 'partial'"):
        run(wanted)


@pytest.mark.parametrize("name", ["full", "partial"])
def test_conv_nets_are_tuned_too(recipe: Recipe, name: str) -> None:
    wanted = tuned_recipe(recipe, name, encoder={"name": "timm:test_resnet", "pretrained": "random"})
    wanted["head"] = {"name": "linear", "init": "class_mean"}
    net = shared_encoder(wanted)
    before = weights_fingerprint(net.module)
    run(wanted)
    assert weights_fingerprint(net.module) == before, "with the statistics of its norms"


def test_a_failed_run_gives_the_encoder_back(recipe: Recipe) -> None:
    wanted = tuned_recipe(recipe, "ssf")
    wanted["training"] |= {"optimizer": {"name": "sgd", "lr": 1e38}, "epochs": 3}
    net = shared_encoder(wanted)
    before = weights_fingerprint(net.module)
    with pytest.raises(InputError, match="training loss became"):
        run(wanted)
    assert weights_fingerprint(net.module) == before
    assert run(tuned_recipe(recipe, "lora")).scores["overall"] >= 0


def test_predict_uses_the_tuned_tower(recipe: Recipe) -> None:
    from imbalance_vlm.predicting import predict_images

    for name in ("vpt", "random_mask", "full"):
        result = run(tuned_recipe(recipe, name))
        found = predict_images(result.path, [Path(recipe["data"]["root"]) / "test"])
        rows = [line.split(",") for line in (result.path / "predictions.csv").read_text().splitlines()[1:]]
        wanted = {row[0]: (row[2], float(row[3])) for row in rows}
        for image, predicted, confidence in found.itertuples(index=False):
            label, share = wanted[str(Path(image).relative_to(recipe["data"]["root"]))]
            assert (predicted, confidence) == (label, pytest.approx(share, abs=2e-4))


# -- settings and crops ------------------------------------------------------------------------------------------------


@every
def test_settings_are_the_method_s_and_those_of_the_crops(name: str) -> None:
    entry = catalogue.TUNINGS.get(METHODS[name]["name"]).member(METHODS[name])
    settings = entry.settings()
    assert settings["crops"].default == "minimalist"
    assert settings["min_scale"].default == 0.08
    tuning = build(name)
    assert isinstance(tuning, PeftTuning)
    for one in settings_of(type(tuning.method)).values():
        assert settings[one.name] == one
    said = entry.load().__doc__ or ""
    assert all(f"{one}: " in said for one in settings), "`show` explains each"


def test_settings_reach_the_method() -> None:
    tuning = of_recipe(LoRA)(rank=7, crops="none")
    assert isinstance(tuning.method, LoRA)
    assert (tuning.method.rank, tuning.crops) == (7, "none")


def test_each_way_to_crop(encoder: Encoder) -> None:
    squares = PeftTuning(LoRA(), min_scale=0.2).transforms(task_of(encoder, epochs=3))
    assert [type(view) for view in squares] == [SquareCrop] * 3
    assert [round(view.min_scale, 3) for view in squares if isinstance(view, SquareCrop)] == [0.2, 0.307, 1.0]
    random = PeftTuning(LoRA(), crops="random").transforms(task_of(encoder, epochs=3, flips=True))
    assert [view.flips for view in random if isinstance(view, CroppedView)] == [True] * 3
    calm = PeftTuning(LoRA(), crops="random").transforms(task_of(encoder, epochs=2, flips=False))
    assert [view.flips for view in calm if isinstance(view, CroppedView)] == [False] * 2
    assert PeftTuning(LoRA(), crops="none").transforms(task_of(encoder)) == [encoder.transform]


def test_the_head_starts_from_the_untouched_tower(encoder: Encoder) -> None:
    """`vpt` changes the outputs from the start; what the head reads of the training set must not change with them."""
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = encoder.image_features(pixels, "embedding")
    seen = []

    def plain() -> CosineHead:
        with torch.no_grad():
            seen.append(encoder.image_features(pixels, "embedding"))
        return CosineHead(16, 4)

    tuning = build("vpt")
    head = tuning.head(task_of(encoder), plain)
    assert torch.equal(seen[0], before)
    with torch.no_grad():
        assert not torch.allclose(head.embed(pixels), F.normalize(before, dim=-1))
        with tuning.base():
            assert torch.equal(encoder.image_features(pixels, "embedding"), before)
    tuning.close()
    tuning.close()
    with torch.no_grad(), tuning.base():
        assert torch.equal(encoder.image_features(pixels, "embedding"), before)


# -- full: rates, divergence, average ----------------------------------------------------------------------------------


def full(encoder: Encoder, kind: str = "embedding", **settings: Any) -> tuple[FullTuning, TunedTower]:
    tuning = FullTuning(**settings)
    width = encoder.width(kind)
    inner = (lambda: DecoderHead(width, 4, depth=1)) if kind == "tokens" else (lambda: CosineHead(width, 4))
    head = tuning.head(task_of(encoder, kind), inner)
    assert isinstance(head, TunedTower)
    return tuning, head


@pytest.mark.parametrize("schedule", [constant, cosine, held_cosine, multistep])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_layer_wise_rates_survive_the_schedule(encoder: Encoder, schedule: Any, optimizer: Any) -> None:
    """At every step, each parameter's rate is that of the head times d^(L - i)."""
    tuning, head = full(encoder, lr_decay=0.5)
    names = {id(value): name for name, value in encoder.module.visual.named_parameters()}

    def wanted(parameter: nn.Parameter) -> float:
        name = names.get(id(parameter), "ln_post")
        starts = {"transformer.resblocks.1": 0.5, "transformer.resblocks.0": 0.25, "ln_post": 1.0}
        return next((scale for start, scale in starts.items() if name.startswith(start)), 0.125)

    made = optimizer(tuning.groups(head), lr=0.4, weight_decay=0.1)
    more = {"milestones": [1]} if schedule is multistep else {"lr_min": 0.01} if schedule is cosine else {}
    plan = schedule(made, 2, 5, warmup_epochs=0.4, **more)
    alone = optimizer([nn.Parameter(torch.ones(1))], lr=0.4)
    reference = schedule(alone, 2, 5, warmup_epochs=0.4, **more)
    there = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    assert there == {id(parameter) for parameter in tuning.parameters(head)}
    rates = set()
    for step in range(10):
        plan.step_update(step)
        reference.step_update(step)
        rate = alone.param_groups[0]["lr"]
        rates.add(rate)
        for group in made.param_groups:
            for parameter in group["params"]:
                assert group["lr"] == pytest.approx(rate * wanted(parameter), rel=1e-12)
                assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
        assert made.param_groups[0]["lr"] == rate, "what the loop reports is the recipe's own rate"
    assert len(rates) > 1
    state = made.state_dict()
    again = optimizer(tuning.groups(head), lr=0.4, weight_decay=0.1)
    again.load_state_dict(state)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in made.param_groups]
    tuning.close()


def test_plain_parameters_make_the_groups_they_made(encoder: Encoder) -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    assert parameter_groups([matrix, vector], 0.1) == [
        {"params": [matrix], "weight_decay": 0.1},
        {"params": [vector], "weight_decay": 0.0},
    ]
    assert parameter_groups([vector], 0.1) == [{"params": [vector], "weight_decay": 0.0}]
    tuning, head = full(encoder)
    (group,) = tuning.groups(head)
    assert group == {"params": tuning.parameters(head)}
    tuning.close()


def test_divergence_is_the_equation() -> None:
    rng = np.random.default_rng(0)
    z, z0, temperature = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)) * 3, 2.0
    wanted = []
    for row, row0 in zip(z / temperature, z0 / temperature, strict=True):
        p, q = (np.exp(r) / sum(np.exp(value) for value in r) for r in (row, row0))
        wanted.append(temperature**2 * sum(q[c] * np.log(q[c] / p[c]) for c in range(4)))
    got = divergence(torch.from_numpy(z), torch.from_numpy(z0), temperature)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9)
    backwards = divergence(torch.from_numpy(z0), torch.from_numpy(z), temperature)
    assert not np.allclose(backwards.numpy(), wanted), "it has a direction"
    assert divergence(torch.from_numpy(z), torch.from_numpy(z)).abs().max() < 1e-12
    extreme = divergence(torch.tensor([[1e4, 0.0]]), torch.tensor([[-1e4, 0.0]]))
    assert torch.isfinite(extreme).all()


@pytest.mark.parametrize("kind", ["embedding", "tokens"])
def test_the_divergence_is_from_the_untouched_model_under_the_head_s_start(encoder: Encoder, kind: str) -> None:
    tuning, head = full(encoder, kind, kl=0.7)
    twin, start = copy.deepcopy(encoder), copy.deepcopy(head.inner)  # of before the training
    start.eval()
    (term,) = tuning.regularizers(task_of(encoder, kind))
    assert isinstance(term, Distill)
    assert term.weight == 0.7
    term.train()
    head.train()

    def step(pixels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = head.embed(pixels)
        logits = head.classify(embeddings)
        return term(StepOutputs(embeddings, torch.zeros(len(pixels), dtype=torch.long), logits)), logits

    first, _ = step(torch.randn(3, 3, 16, 16))
    assert first.item() == pytest.approx(0, abs=1e-6)
    tuning_parameters = tuning.parameters(head)
    with torch.no_grad():
        for parameter in tuning_parameters:
            parameter.add_(0.05 * torch.randn_like(parameter))
    pixels = torch.randn(3, 3, 16, 16)
    value, logits = step(pixels)
    with torch.no_grad():
        frozen = start(twin.image_features(pixels, kind))
    q = frozen.softmax(1)
    wanted = (q * (q.log() - logits.softmax(1).log())).sum(1).mean()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert value.item() > 1e-3
    value.backward()
    assert all(parameter.grad is not None for parameter in head.tower.parameters())
    assert not any(parameter.requires_grad for parameter in term.parameters())
    assert not term.start.training
    tuning.close()


def test_the_divergence_wants_the_whole_batch(encoder: Encoder) -> None:
    tuning, head = full(encoder, kl=1.0)
    embeddings = head.embed(torch.randn(2, 3, 16, 16))
    whole = embeddings.repeat(2, 1)  # as gathered from two processes
    with pytest.raises(InputError, match=r"`tuning\.kl` compares whole batches .* has 2 of 4 images"):
        tuning.regularizers(task_of(encoder))[0](StepOutputs(whole, torch.zeros(4), head.classify(whole)))
    tuning.close()


def test_full_has_no_term_of_its_own_unless_asked(encoder: Encoder) -> None:
    tuning, head = full(encoder)
    assert tuning.regularizers(task_of(encoder)) == []
    assert tuning.gradient(task_of(encoder)) is None
    tuning.finish(head)
    tuning.close()


# -- wired -------------------------------------------------------------------------------------------------------------


def test_an_averaged_run_lies_between_its_start_and_the_trained_one(recipe: Recipe) -> None:
    """Tower and head, as they stand in the run's folder."""
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


def test_the_recipe_s_rate_falls_towards_the_input(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = parameter_groups

    def seen(parameters: Any, weight_decay: float) -> Any:
        given.append(parameters)
        return real(parameters, weight_decay)

    monkeypatch.setattr("imbalance_vlm.training.optimizers.parameter_groups", seen)
    wanted = tuned_recipe(recipe, "full")
    run(wanted)
    assert [group.get("lr_scale", 1.0) for group in given[0]] == [1.0, 1.0, 0.5, 0.25, 0.125]


def test_copies_of_the_model_s_size_change_no_number_of_a_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a tower that is trained nor for features that are kept; the images are PNG files of 20 pixels."""
    for tuning in ({"name": "peft", "method": "bitfit", "crops": "none"}, "linear_probe"):
        wanted = tuned_recipe(recipe, "bitfit") | {"tuning": tuning}
        plain, copies = (run(wanted, f"encoder.resized={size}", runs=f"{size}") for size in (0, 16))
        assert copies.scores == plain.scores
        both = [load_file(result.path / "head.safetensors") for result in (plain, copies)]
        assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
        assert list(Path("cache/images/16").rglob("*.npy"))


def test_the_decoder_of_a_recipe_reads_the_images(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's is near PIL's, and on a machine without a GPU it is the GPU's."""
    wanted = tuned_recipe(recipe, "bitfit")
    wanted["tuning"]["crops"] = "none"
    pil, other, gpu = (run(wanted, f"encoder.decoder={decoder}") for decoder in ("pil", "torchvision", "gpu"))
    assert other.scores["nll"] == pytest.approx(pil.scores["nll"], rel=0.02)
    assert other.scores["nll"] != pil.scores["nll"]
    if not torch.cuda.is_available():
        assert gpu.scores == other.scores


@pytest.mark.parametrize("tuning", [{"name": "peft", "method": "vpt"}, "linear_probe"])
def test_five_crops_change_the_scores_of_heads_on_images_and_on_features(recipe: Recipe, tuning: Any) -> None:
    wanted = tuned_recipe(recipe, "vpt") | {"tuning": tuning}
    single, crops, both = (run(wanted, f"evaluation.tta={tta}") for tta in ("none", "five_crops", "five_crops_flips"))
    assert len({result.scores["nll"] for result in (single, crops, both)}) == 3
    with pytest.raises(InputError, match="evaluation.tta"):
        run(wanted, "evaluation.tta=five_crops_flips", "data.flips=false")


def test_prototypes_of_a_regularizer_are_those_of_the_untouched_tower(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made behind the head, when `vpt` is in the tower already."""
    found: list[Tensor] = []
    real = assembly.class_mean_directions

    def seen(*given: Any) -> Tensor:
        found.append(real(*given))
        return found[-1]

    monkeypatch.setattr(assembly, "class_mean_directions", seen)
    terms = {"loss": "cross_entropy", "regularizers": [{"name": "prototype_contrastive", "assign": "class_mean"}]}
    head = {"name": "cosine", "adapter": 8}
    run(tuned_recipe(recipe, "vpt", balancing=terms, head=head))
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", str(Path("another_cache").absolute()))
    run(recipe | {"tuning": "linear_probe", "balancing": terms, "head": head})
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tuning": {"name": "full", "kl": 1.0}, "head": {"name": "cosine", "init": "random"}}, "tuning.kl"),
        ({"tuning": {"name": "full", "average": 0.5}}, r"tuning\.average: .*It is `training\.interpolation` now"),
        ({"tuning": {"name": "full"}, "training": {"epochs": 1, "shard": True, "ema": 0.9}}, "needs training.ema 0"),
        (
            {"training": {"epochs": 1, "shard": True}},
            "training.shard: .*use tuning 'full' or 'peft', got 'linear_probe'",
        ),
    ],
)
def test_what_full_tuning_is_held_to_must_mean_something(recipe: Recipe, more: Recipe, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(recipe | more)
