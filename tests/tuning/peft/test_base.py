"""Contracts of all methods that tune a tower, on towers of open_clip and timm."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.tuning.peft.base import adaptive_width
from imbalance_vlm.tuning.peft.bitfit import BitFit
from imbalance_vlm.tuning.peft.full import Full
from imbalance_vlm.tuning.peft.layernorm import LayerNorm
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.ssf import SSF
from imbalance_vlm.tuning.tower_head import module_of
from tests.tuning.peft.tiny_towers import (
    ADDED,
    CLASSES,
    EVA,
    IN_PLACE,
    METHODS,
    every,
    every_on_every_tower,
    features,
    on,
    pixels,
    tensors_outside_the_state,
    tower,
    train_steps,
)

DIFFERENT_TOWERS = ("open_clip", "timm", "eva01", "eva02", "pe")
KINDS_OF_CHANGE = ("adaptformer", "lora", "ssf", "vpt")
"""A module of its own, other weights, other outputs, other tokens."""


@on(["open_clip", "timm", *EVA], ADDED)
def test_outputs_do_not_change_at_the_start(kind: str, name: str) -> None:
    net = tower(kind)
    before = features(net)
    METHODS[name].apply(net, CLASSES)
    assert torch.equal(features(net), before)


@every_on_every_tower
def test_training_changes_what_is_listed_and_nothing_else(kind: str, name: str) -> None:
    net = tower(kind)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    output = features(net)
    tuned = METHODS[name].apply(net, CLASSES)
    start = {key: value.detach().clone() for key, value in tuned.named_parameters().items()}
    train_steps(tuned)
    for key, parameter in net.named_parameters():
        assert parameter.requires_grad == (key in start)
        if key in start:
            assert not torch.equal(parameter, start[key]), f"{key} did not change"
        else:
            assert parameter.grad is None, f"{key} got a gradient"
            assert torch.equal(parameter, before[key]), f"{key} changed"
    assert not torch.allclose(features(net), output)


@every_on_every_tower
def test_removing_restores_the_tower(kind: str, name: str) -> None:
    """A study runs many methods on one encoder."""
    net = tower(kind)
    net.requires_grad_(True)
    names = list(net.state_dict())
    before, state = features(net), copy.deepcopy(net.state_dict())
    buffers = {key: value.clone() for key, value in net.named_buffers()}  # EVA's bias of the keys is in no state
    tuned = METHODS[name].apply(net, CLASSES)
    assert [key for key in net.state_dict() if key in set(names)] == names
    train_steps(tuned)
    tuned.remove()
    tuned.remove()  # a second time does nothing
    assert list(net.state_dict()) == names
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, buffers[key]) for key, value in net.named_buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not tensors_outside_the_state(net)
    assert torch.equal(features(net), before)
    with METHODS[name].apply(net, CLASSES) as again:
        train_steps(again)
    assert torch.equal(features(net), before)


@every_on_every_tower
def test_base_gives_the_untouched_tower_during_tuning(kind: str, name: str) -> None:
    net = tower(kind)
    before = features(net)
    tuned = METHODS[name].apply(net, CLASSES)
    train_steps(tuned)
    after = features(net)
    net.train()
    with tuned.base():
        assert torch.equal(features(net), before)
    assert net.training
    net.eval()
    assert torch.equal(features(net), after)


@every_on_every_tower
def test_values_are_all_that_was_trained_and_restore_it(kind: str, name: str) -> None:
    net, other = tower(kind), tower(kind)
    torch.manual_seed(1)
    tuned = METHODS[name].apply(net, CLASSES)
    train_steps(tuned)
    state = {key: value.detach().clone() for key, value in tuned.values().items()}
    torch.manual_seed(2)  # other prompts, other places
    restored = METHODS[name].apply(other, CLASSES)
    module_of(restored.values()).load_state_dict(state)
    assert torch.equal(features(other), features(net))
    assert set(tuned.named_parameters()) <= set(state)
    if name not in IN_PLACE:
        assert not set(state) & set(tower(kind).state_dict())


@every_on_every_tower
def test_works_with_deepcopy_and_autocast(kind: str, name: str) -> None:
    net = tower(kind)
    tuned = METHODS[name].apply(net, CLASSES)
    train_steps(tuned)
    wanted = features(net)
    twin = copy.deepcopy(net)
    tuned.remove()
    assert torch.equal(features(twin), wanted), "a copy, such as a weight average, must not depend on the original"
    small = tower(kind).float()
    tuned = METHODS[name].apply(small, CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        output = small(pixels().float())
    output.float().square().sum().backward()
    for key, parameter in tuned.named_parameters().items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.slow
@on(
    ["open_clip", "timm", "eva01", "eva02", "pe"], ["adaptformer", "lora", "ssf", "vpt"]
)  # modules, weights, layers, tokens
def test_compiles_without_graph_breaks(kind: str, name: str) -> None:
    net = tower(kind)
    train_steps(METHODS[name].apply(net, CLASSES))
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels()), net(pixels()))


@on(["open_clip", "timm", "eva01", "eva02"], ["lora", "ssf", "random_mask"])
def test_a_failed_pass_leaves_no_overridden_weights(kind: str, name: str) -> None:
    net = tower(kind)
    METHODS[name].apply(net, CLASSES)
    wrong = torch.zeros(1, 5, 31, dtype=torch.float64)
    attention = net.transformer.resblocks[0].attn if kind == "open_clip" else net.blocks[0].attn
    with pytest.raises((RuntimeError, AssertionError)):
        attention(*[wrong] * (3 if kind == "open_clip" else 1))
    assert not tensors_outside_the_state(net)


@every
def test_removing_restores_the_modes_also_of_an_interrupted_training(name: str) -> None:
    net = tower("timm")
    net.blocks[0].train()
    before = {module: module.training for module in net.modules()}
    tuned = METHODS[name].apply(net, CLASSES)
    tuned.train()
    tuned.remove()
    assert {module: module.training for module in net.modules()} == before


def test_a_tower_under_tuning_is_refused() -> None:
    net = tower("timm")
    LoRA().apply(net, CLASSES)
    with pytest.raises(InputError, match=r"already under tuning by 'lora'; call remove\(\)"):
        SSF().apply(net, CLASSES)


def test_the_text_tower_is_frozen_too() -> None:
    model = nn.ModuleDict({"visual": tower("open_clip"), "text": nn.Linear(2, 2)})
    tuned = Full().apply(model, CLASSES)
    assert not any(p.requires_grad for p in model["text"].parameters())
    assert tuned.root is model["visual"]
    tuned.remove()
    assert all(p.requires_grad for p in model["text"].parameters())


@on(DIFFERENT_TOWERS, KINDS_OF_CHANGE)
def test_gradient_checkpointing_does_not_change_gradients(kind: str, name: str) -> None:
    grads = []
    for checkpointing in (False, True):
        net = tower(kind).train()
        torch.manual_seed(3)
        tuned = METHODS[name].apply(net, CLASSES)
        net.set_grad_checkpointing(checkpointing)
        net(pixels()).square().sum().backward()
        grads.append([parameter.grad for parameter in tuned.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize(
    ("classes", "layers", "width"),
    [(100, 12, 4), (365, 12, 8), (1000, 12, 32), (8142, 12, 256), (10, 12, 1), (48, 12, 2)],
)
def test_adaptive_width_follows_the_number_of_classes(classes: int, layers: int, width: int) -> None:
    assert adaptive_width(classes, layers) == width
    assert adaptive_width(classes, layers) == 2 ** max(0, math.floor(math.log2(classes / (2 * layers))))


@pytest.mark.parametrize("name", ["adaptformer", "lora", "vpt", "random_mask"])
def test_the_start_depends_on_the_seed_alone(name: str) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        net = tower("timm")
        torch.manual_seed(seed)
        return METHODS[name].apply(net, CLASSES).values()

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@every
def test_every_kind_of_feature_can_be_tuned(tiny_clip: str, name: str) -> None:
    encoder = create_encoder(tiny_clip)
    images = pixels().float()
    for kind, shape in {"embedding": (3, 16), "class_token": (3, 32), "tokens": (3, 5, 32)}.items():
        with torch.no_grad():
            before = encoder.image_features(images, kind)
        with METHODS[name].apply(encoder.module, CLASSES) as tuned:
            got = encoder.image_features(images, kind)
            assert got.shape == shape, "a prompt is not an image token"
            got.square().sum().backward()
            assert not [key for key, value in tuned.named_parameters().items() if value.grad is None]
            reached = [parameter for parameter in encoder.module.parameters() if parameter.grad is not None]
            assert len(reached) == len(tuned.parameters()), "no gradient reaches the text tower"
        with torch.no_grad():
            assert torch.equal(encoder.image_features(images, kind), before)


def test_describe_lists_names_and_shapes() -> None:
    tuned = LoRA(rank=3).apply(tower("open_clip"), CLASSES)
    assert tuned.describe()[:2] == [
        ("transformer.resblocks.0.lora.attention_in.q_down", (3, 32)),
        ("transformer.resblocks.0.lora.attention_in.q_up", (32, 3)),
    ]
    assert len(tuned.describe()) == 8
    names = [name for name, _ in BitFit().apply(tower("timm"), CLASSES).describe()]
    assert all(name.endswith("bias") for name in names)
    assert "blocks.1.attn.qkv.bias" in names
    norms = {name for name, _ in LayerNorm().apply(tower("open_clip"), CLASSES).describe()}
    assert {"ln_pre.weight", "transformer.resblocks.1.ln_2.bias", "ln_post.bias"} <= norms
    assert len(norms) == 12
