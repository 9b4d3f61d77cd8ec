"""Methods on other towers: variants of vision transformers, and networks of other kinds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmTower
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer
from imbalance_vlm.tuning.peft.full import Full
from imbalance_vlm.tuning.peft.layernorm import LayerNorm
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.partial import Partial
from imbalance_vlm.tuning.peft.vpt import VPT
from imbalance_vlm.tuning.tower_head import module_of
from tests.tuning.peft.tiny_towers import CLASSES, METHODS, features, pixels, tower, train_steps


def conv(name: str) -> nn.Module:
    torch.manual_seed(0)
    small = {"resnet10t": {}, "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}}
    return timm.create_model(name, num_classes=0, **small[name]).eval()


@pytest.mark.parametrize("name", ["adaptformer", "adapter", "lora", "ssf", "vpt", "random_mask"])
@pytest.mark.parametrize("net", ["resnet10t", "convnext_atto"])
def test_networks_without_the_parts_are_refused_by_name_and_not_changed(name: str, net: str) -> None:
    module = conv(net)
    kind = {"resnet10t": "ResNet", "convnext_atto": "ConvNeXt"}[net]
    with pytest.raises(InputError, match=rf"needs a vision transformer .* {kind} has no transformer blocks") as error:
        METHODS[name].apply(module, CLASSES)
    assert "'full' and 'partial' tune any network" in str(error.value)
    assert all(parameter.requires_grad for parameter in module.parameters())
    Full().apply(module, CLASSES)  # the tower is not under tuning


def test_blocks_without_a_part_are_refused_with_its_name() -> None:
    beit = timm.create_model("beit_base_patch16_224", num_classes=0, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(InputError, match=r"Beit has blocks \(Block\) without ls2"):
        AdaptFormer().apply(beit, CLASSES)
    assert all(parameter.requires_grad for parameter in beit.parameters())


def test_layernorm_needs_layer_norms() -> None:
    with pytest.raises(InputError, match="'layernorm' needs a tower with layer norms, and ResNet has none"):
        LayerNorm().apply(conv("resnet10t"), CLASSES)
    with pytest.raises(InputError, match="blocks or stages"):
        Full(lr_decay=0.5).apply(nn.Linear(2, 2), CLASSES)


@pytest.mark.parametrize("net", ["resnet10t", "convnext_atto"])
def test_convolutional_networks_are_tuned_in_full_or_by_their_last_stages(net: str) -> None:
    module, image = conv(net), torch.randn(4, 3, 64, 64)
    before = copy.deepcopy(module.state_dict())
    for method in (Full(lr_decay=0.5), Partial(last=2)):
        tuned = method.apply(module, CLASSES)
        tuned.train()
        optimizer = torch.optim.SGD(tuned.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(image).square().sum().backward()
            optimizer.step()
        assert not [name for name, parameter in tuned.named_parameters().items() if parameter.grad is None]
        tuned.train(False)
        wanted = module(image)
        state = {key: value.detach().clone() for key, value in tuned.values().items()}
        changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
        assert changed <= set(state), "statistics of frozen norms do not change"
        if isinstance(method, Partial):
            stages = {"resnet10t": ("layer3.", "layer4."), "convnext_atto": ("stages.2.", "stages.3.", "head.")}[net]
            assert {name for name in changed if not name.startswith(stages)} == set()
        tuned.remove()
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        tuned = method.apply(module, CLASSES)
        module_of(tuned.values()).load_state_dict(state)
        torch.testing.assert_close(module(image), wanted)
        tuned.remove()


def test_layer_scale_and_stochastic_depth_come_before_the_branch() -> None:
    for net in (tower("timm", init_values=0.1), tower("open_clip", ls_init_value=0.1)):
        before = features(net)
        tuned = AdaptFormer().apply(net, CLASSES)
        assert torch.equal(features(net), before)
        train_steps(tuned)
        assert not torch.allclose(features(net), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
        {"final_norm": False},
        {"qkv_bias": False},
        {"pre_norm": True, "qk_norm": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_variants_of_a_vision_transformer(settings: dict[str, object]) -> None:
    for name, method in METHODS.items():
        net = tower("timm", **settings)
        before = features(net)
        with method.apply(net, CLASSES) as tuned:
            assert torch.equal(features(net), before) != name.startswith("vpt")
            train_steps(tuned)
            assert not torch.allclose(features(net), before)
            tokens = net.forward_features(pixels())
            assert tokens.shape[1] == net.num_prefix_tokens + 4
        assert torch.equal(features(net), before)


def test_a_tower_of_timm_inside_open_clip_is_tuned() -> None:
    outer = nn.ModuleDict({"visual": nn.ModuleDict({"trunk": tower("timm")})})
    tuned = LoRA().apply(outer, CLASSES)
    assert isinstance(tuned.root, TimmTower)


class OperatorCalls(TorchDispatchMode):
    """The names of torch's operators, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [AdaptFormer, VPT])
@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_towers_under_tuning_use_fused_attention(kind: str, method: Any, tiny_clip: str) -> None:
    """Once per block; attention that is not fused would show as a softmax over (B, heads, T, T).

    torch's attention module has a special kernel for a block without gradients, such as the first under AdaptFormer.
    """
    if kind == "timm":
        size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        net: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **size)
        forward: Any = net
    else:
        net = create_encoder(tiny_clip).module
        forward = net.encode_image
    with method().apply(net, 10) as tuned:
        tuned.train()
        with OperatorCalls() as calls:
            forward(torch.randn(2, 3, 16, 16)).sum().backward()
    fused = ("scaled_dot_product", "native_multi_head_attention")
    forwards = [name for name in calls.names if any(kernel in name for kernel in fused) and "backward" not in name]
    assert len(forwards) == 2
    assert not any("softmax" in name for name in calls.names)


def test_attention_of_a_tuned_tower_reads_contiguous_memory_in_training() -> None:
    net, seen = tower("open_clip"), []
    with AdaptFormer().apply(net, 10):
        for block in net.transformer.resblocks:
            block.attn.register_forward_pre_hook(lambda attention, args: seen.append(args[0].transpose(0, 1)))
        frozen = features(net)
        assert not any(tokens.is_contiguous() for tokens in seen)
        seen.clear()
        torch.testing.assert_close(net(pixels()), frozen)
        assert len(seen) == len(net.transformer.resblocks)
        assert all(tokens.is_contiguous() for tokens in seen)
    assert not any(block.ln_1._forward_hooks for block in net.transformer.resblocks)
