"""A head on a tower under tuning: what it trains, what it saves, and its copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from imbalance_vlm import create_encoder
from imbalance_vlm.balancing.corrected import CorrectedClassifier
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.training.averaging import Ema
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.tuning.tower_head import TowerHead
from tests.tuning.peft.tiny_towers import METHODS

CLASSES = 4
every = pytest.mark.parametrize("name", ["vpt", "lora", "random_mask", "bitfit", "full"])


def encoder_of(tiny_clip: str, **settings: str) -> Encoder:
    net = create_encoder(tiny_clip, **settings)
    net.module.requires_grad_(False)
    return net


def make_head(net: Encoder, name: str, kind: str = "embedding") -> TowerHead:
    torch.manual_seed(3)
    inner = LinearHead(net.width(kind), CLASSES)
    return TowerHead(net, METHODS[name].apply(net.module, CLASSES), inner, kind)


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def train_steps(head: TowerHead, steps: int = 2, average: Ema | None = None) -> None:
    """SGD with momentum and weight decay, over all trained parameters of the head."""
    objective = Objective(head, create_loss("cross_entropy", [5] * CLASSES)).train()
    optimizer = sgd([value for value in head.parameters() if value.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(*batch()).backward()
        optimizer.step()
        if average is not None:
            average.update(head)


@torch.no_grad()
def logits(head: Head) -> Tensor:
    return head.eval()(batch()[0])


@every
def test_the_embedding_is_that_of_the_inner_head_on_the_tuned_features(tiny_clip: str, name: str) -> None:
    net = encoder_of(tiny_clip)
    head = make_head(net, name)
    train_steps(head)
    head.eval()
    features = net.image_features(batch()[0], "embedding")
    assert torch.equal(head.embed(batch()[0]), head.inner.embed(features))
    assert torch.equal(head(batch()[0]), head.inner(features))
    assert (head.learns_text, head.text) == (False, None)


@every
def test_the_state_is_what_was_trained_and_restores_the_head(tiny_clip: str, name: str) -> None:
    """Also as a part of an objective, whose state is in a checkpoint, and of a corrected model."""
    net = encoder_of(tiny_clip)
    head = make_head(net, name)
    train_steps(head)
    state = {key: value.clone() for key, value in head.state_dict().items()}
    tower = {key.removeprefix("tower."): value for key, value in state.items() if key.startswith("tower.")}
    wanted = head.tuned.values()
    assert tower.keys() == wanted.keys()
    assert all(torch.equal(tower[key], wanted[key]) for key in wanted)
    expected = logits(head)
    nested = Objective(head, create_loss("cross_entropy", [5] * CLASSES)).state_dict()
    assert {f"head.{key}" for key in state} == {key for key in nested if key.startswith("head.")}
    head.tuned.remove()

    fresh = make_head(net, name)
    assert not torch.allclose(logits(fresh), expected)
    CorrectedClassifier(fresh).load_state_dict({f"head.{key}": value for key, value in state.items()})
    assert torch.equal(logits(fresh), expected)


def test_the_state_of_another_method_is_refused(tiny_clip: str) -> None:
    net = encoder_of(tiny_clip)
    first = make_head(net, "vpt")
    state = first.state_dict()
    first.tuned.remove()
    with pytest.raises(RuntimeError, match=r"lora"):
        make_head(net, "lora").load_state_dict(state)


@every
def test_a_copy_shares_what_is_frozen_and_outlives_the_tuned_tower(tiny_clip: str, name: str) -> None:
    net = encoder_of(tiny_clip)
    head = make_head(net, name)
    train_steps(head, 1)
    expected = logits(head)
    twin = copy.deepcopy(head)
    assert twin.encoder is not net
    trained = {id(value) for value in head.parameters()}
    for key, value in net.module.named_parameters():
        copied = twin.encoder.module.get_parameter(key)
        assert (copied is value) == (id(value) not in trained), key
    head.tuned.remove()
    assert torch.equal(logits(twin), expected)


@pytest.mark.parametrize("name", ["vpt", "full"])
def test_a_moving_average_is_that_of_the_trained_values(tiny_clip: str, name: str) -> None:
    net = encoder_of(tiny_clip)
    head = make_head(net, name)
    average = Ema(head, 0.15)  # below the first steps' own decay, 2 / 11
    wanted: dict[str, Tensor] = {}
    for _ in range(3):
        train_steps(head, 1, average)
        for key, value in head.state_dict().items():
            wanted[key] = 0.15 * wanted[key] + 0.85 * value if key in wanted else value.clone()
    last = logits(head)
    head.load_state_dict(average.state())
    for key, value in head.state_dict().items():
        torch.testing.assert_close(value, wanted[key])
    assert not torch.allclose(logits(head), last)  # the values are those of the tower, not copies
    assert all(value is head.tower.get_parameter(key) for key, value in head.tuned.named_parameters().items())


def test_training_mode_applies_to_what_is_trained(tiny_clip: str) -> None:
    net = encoder_of(tiny_clip)
    head = make_head(net, "vpt").train()
    on = [key for key, module in head.tuned.root.named_modules() if module.training]
    assert on == [f"transformer.resblocks.{block}.vpt" for block in range(2)]
    assert head.inner.training
    head.eval()
    assert not any(module.training for module in [*head.tuned.root.modules(), head.inner])


def test_a_text_head_on_a_tuned_tower(tiny_clip: str) -> None:
    net = encoder_of(tiny_clip)
    tuned = METHODS["lora"].apply(net.module, CLASSES)
    text = net.text_features(["a", "b", "c", "d"], ["{}"])
    head = TowerHead(net, tuned, TextHead(text, 10.0), "embedding")
    assert torch.equal(head.classifier()[0], 10.0 * text)
    train_steps(head)
    assert set(head.state_dict()) == {"inner.weight"} | {f"tower.{key}" for key in tuned.values()}


def test_the_precision_is_that_of_the_encoder(tiny_clip: str) -> None:
    net = encoder_of(tiny_clip, precision="bf16")
    head = make_head(net, "lora")
    outputs = []
    handle = net.module.visual.transformer.resblocks[0].mlp.register_forward_hook(lambda *args: outputs.append(args[2]))
    train_steps(head, 1)
    handle.remove()
    assert outputs[0].dtype == torch.bfloat16
    assert head.embed(batch()[0]).dtype == torch.float32
    assert {value.dtype for value in head.parameters()} == {torch.float32}
    assert torch.isfinite(logits(head)).all()
