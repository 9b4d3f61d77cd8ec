"""Tuning of the image tower: its settings, its heads, and the terms and rates of full fine-tuning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.distill import Distill
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.heads.cosine import CosineHead
from imbalance_vlm.heads.decoder import DecoderHead
from imbalance_vlm.training.loop import set_rates
from imbalance_vlm.training.optimizers import adamw, parameter_groups, sgd
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.crops import TowerCrops
from imbalance_vlm.tuning.peft.full import Full
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.tuning import FullTuning
from imbalance_vlm.tuning.tower_head import TowerHead
from tests.tuning.peft.tiny_towers import SECTIONS, make_tuning

NAMES = ("red apple", "green leaf", "blue car", "white cup")
every = pytest.mark.parametrize("name", SECTIONS)


def context_of(encoder: Encoder, kind: str = "embedding", epochs: int = 3, flips: bool = False) -> TuningContext:
    cpu, templates = torch.device("cpu"), ("a photo of a {}.",)
    return TuningContext(encoder, kind, NAMES, (), templates, cpu, epochs, 0, flips, encoder.text_features)


@pytest.fixture
def encoder(tiny_clip: str) -> Encoder:
    encoder = create_encoder(tiny_clip)
    encoder.module.requires_grad_(False)
    return encoder


@every
def test_settings_are_those_of_the_method_and_of_the_crops(name: str) -> None:
    entry = catalogue.TUNINGS.get(SECTIONS[name]["name"])
    settings = entry.settings(SECTIONS[name])
    assert (settings["crops"].default, settings["min_scale"].default) == ("growing", 0.08)
    if entry.methods is not None:
        method = settings_of(entry.member(SECTIONS[name]).load())
        assert list(settings) == [*method, "crops", "min_scale"]
        assert all(settings[key] == setting for key, setting in method.items())


def test_a_section_s_settings_reach_the_method_and_the_crops() -> None:
    tuning = make_tuning("lora", rank=7, crops="none")
    assert isinstance(tuning.method, LoRA)
    assert (tuning.method.rank, tuning.crops) == (7, TowerCrops(crops="none"))
    full_tuning = make_tuning("full", lr_decay=0.5, min_scale=0.3)
    assert isinstance(full_tuning.method, Full)
    assert (full_tuning.method.lr_decay, full_tuning.crops.min_scale) == (0.5, 0.3)


def test_the_head_starts_from_the_untouched_tower(encoder: Encoder) -> None:
    """`vpt` changes the outputs at the start, and the features that the head starts from must be those before it."""
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = encoder.image_features(pixels, "embedding")
    features = []

    def plain() -> CosineHead:
        with torch.no_grad():
            features.append(encoder.image_features(pixels, "embedding"))
        return CosineHead(16, 4)

    tuning = make_tuning("vpt")
    head = tuning.head(context_of(encoder), plain)
    assert torch.equal(features[0], before)
    with torch.no_grad():
        assert not torch.allclose(head.embed(pixels), F.normalize(before, dim=-1))
        with tuning.base():
            assert torch.equal(encoder.image_features(pixels, "embedding"), before)
    tuning.close()
    tuning.close()
    with torch.no_grad(), tuning.base():
        assert torch.equal(encoder.image_features(pixels, "embedding"), before)


# -- full fine-tuning --------------------------------------------------------------------------------------------------


def full(encoder: Encoder, kind: str = "embedding", **settings: Any) -> tuple[FullTuning, TowerHead]:
    tuning = FullTuning(**settings)
    width = encoder.width(kind)
    inner = (lambda: DecoderHead(width, 4, depth=1)) if kind == "tokens" else (lambda: CosineHead(width, 4))
    head = tuning.head(context_of(encoder, kind), inner)
    assert isinstance(head, TowerHead)
    return tuning, head


@pytest.mark.parametrize("name", catalogue.SCHEDULES.names())
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_layer_wise_rates_hold_under_every_schedule(encoder: Encoder, name: str, optimizer: Any) -> None:
    """At every step, each parameter's rate is that of the head times d^(L - i)."""
    tuning, head = full(encoder, lr_decay=0.5)
    names = {id(value): path for path, value in encoder.module.visual.named_parameters()}

    def wanted(parameter: nn.Parameter) -> float:
        path = names.get(id(parameter), "ln_post")
        starts = {"transformer.resblocks.1": 0.5, "transformer.resblocks.0": 0.25, "ln_post": 1.0}
        return next((scale for start, scale in starts.items() if path.startswith(start)), 0.125)

    optimizer_in_use = optimizer(tuning.groups(head), lr=0.4, weight_decay=0.1)
    more: dict[str, Any] = {"multistep": {"milestones": [1]}, "cosine": {"lr_min": 0.01}}.get(name, {})
    offers: Any = {"epochs": lambda section: 2, "steps_per_epoch": lambda section: 5}
    schedule = catalogue.SCHEDULES.make({"name": name, "warmup_epochs": 0.4} | more, offers)
    for group in optimizer_in_use.param_groups:
        group["initial_lr"] = 0.4
    scheduled = {id(parameter) for group in optimizer_in_use.param_groups for parameter in group["params"]}
    assert scheduled == {id(parameter) for parameter in tuning.parameters(head)}
    rates = set()
    for step in range(10):
        set_rates(optimizer_in_use, schedule, step)
        rate = schedule(step, 0.4)
        rates.add(rate)
        for group in optimizer_in_use.param_groups:
            for parameter in group["params"]:
                assert group["lr"] == pytest.approx(rate * wanted(parameter), rel=1e-12)
                assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
        assert optimizer_in_use.param_groups[0]["lr"] == rate, "the rate that the loop reports is the recipe's"
    assert len(rates) > 1
    state = optimizer_in_use.state_dict()
    again = optimizer(tuning.groups(head), lr=0.4, weight_decay=0.1)
    again.load_state_dict(state)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer_in_use.param_groups]
    tuning.close()


def test_without_decay_of_rates_there_is_one_group(encoder: Encoder) -> None:
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


@pytest.mark.parametrize("kind", ["embedding", "tokens"])
def test_the_divergence_is_from_the_frozen_tower_under_the_head_at_its_start(encoder: Encoder, kind: str) -> None:
    tuning, head = full(encoder, kind, kl=0.7)
    twin, start = copy.deepcopy(encoder), copy.deepcopy(head.inner)  # of before the training
    start.eval()
    (term,) = tuning.regularizers(context_of(encoder, kind))
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


def test_the_divergence_needs_the_whole_batch(encoder: Encoder) -> None:
    tuning, head = full(encoder, kl=1.0)
    embeddings = head.embed(torch.randn(2, 3, 16, 16))
    gathered = embeddings.repeat(2, 1)  # as gathered from two processes
    with pytest.raises(InputError, match=r"`tuning\.kl` compares whole batches .* has 2 of 4 images"):
        tuning.regularizers(context_of(encoder))[0](StepOutputs(gathered, torch.zeros(4), head.classify(gathered)))
    tuning.close()


def test_full_has_no_regularizer_unless_kl_is_set(encoder: Encoder) -> None:
    tuning, head = full(encoder)
    assert tuning.regularizers(context_of(encoder)) == []
    assert tuning.gradient(context_of(encoder)) is None
    tuning.finish(head)
    tuning.close()
