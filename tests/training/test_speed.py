"""What makes a step fast: the kernels that are used, and on which device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imbalance_vlm import create_encoder
from imbalance_vlm.data.dataset import ArrayImages, Split
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders import sources
from imbalance_vlm.encoders.sources import FeatureSource, PixelSource, evaluation_rows
from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.training.devices import fast_layout
from imbalance_vlm.training.distributed.sharding import load_optimizer_state
from imbalance_vlm.training.optimizers import adamw, can_fuse, sgd
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer
from imbalance_vlm.tuning.peft.vpt import VPT

CPU = torch.device("cpu")


# -- attention -------------------------------------------------------------------------------------------------------


class Called(TorchDispatchMode):
    """The names of torch's operators, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [AdaptFormer, VPT])
@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_towers_under_tuning_use_the_fused_attention(kind: str, method: Any, tiny_clip: str) -> None:
    """Once for each block; the plain way would show as a softmax over (B, heads, T, T). torch's attention module has a
    kernel of its own for a block that no gradient flows through, as the first one under AdaptFormer."""
    if kind == "timm":
        size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        net: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **size)
        forward: Any = net
    else:
        net = create_encoder(tiny_clip).module
        forward = net.encode_image
    with method().apply(net, 10) as tuned:
        tuned.train()
        with Called() as called:
            forward(torch.randn(2, 3, 16, 16)).sum().backward()
    fused = ("scaled_dot_product", "native_multi_head_attention")
    forwards = [name for name in called.names if any(one in name for one in fused) and "backward" not in name]
    assert len(forwards) == 2
    assert not any("softmax" in name for name in called.names)


# -- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, adamw])
def test_fused_steps_are_for_gpus_alone(make: Any) -> None:
    optimizer = make([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    assert not any(group["fused"] for group in optimizer.param_groups)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [sgd, adamw])
def test_fused_steps_are_those_of_the_plain_optimizer(make: Any) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(3, 4).to(device))
        optimizer = make([weight], lr=0.1, weight_decay=0.1)
        assert bool(optimizer.param_groups[0]["fused"]) == (device == "cuda")
        for _ in range(3):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()
        ends.append(weight.detach().cpu())
    torch.testing.assert_close(*ends)


def test_a_checkpoint_of_another_device_leaves_the_kernels_alone() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = adamw([weight])
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"fused": True, "foreach": True, "lr": 0.7}  # as a GPU's may say
    assert not can_fuse(optimizer.param_groups)
    load_optimizer_state(optimizer, state)
    group = optimizer.param_groups[0]
    assert (group["fused"], group["foreach"], group["lr"]) == (None, None, 0.7)


# -- convolutions ----------------------------------------------------------------------------------------------------


def test_on_the_cpu_the_layout_stays() -> None:
    net = timm.create_model("resnet10t", num_classes=0)
    assert fast_layout(net, CPU) is net
    assert all(value.is_contiguous() for value in net.parameters())


@pytest.mark.gpu
def test_conv_nets_run_channels_last_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    net = timm.create_model("resnet10t", num_classes=0).eval()
    pixels = torch.randn(2, 3, 32, 32)
    wanted = net(pixels)
    fast_layout(net, gpu)
    assert net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(pixels.to(gpu)).cpu(), wanted, rtol=1e-3, atol=1e-3)
    vit = fast_layout(timm.create_model("vit_tiny_patch16_224", num_classes=0), gpu)
    assert all(value.is_contiguous() for value in vit.parameters())


# -- evaluation ------------------------------------------------------------------------------------------------------


class Sizes(nn.Module):
    """Notes how many images it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, features: Tensor) -> Tensor:
        self.seen.append(len(features))
        return torch.stack([features.flatten(1).mean(1), -features.flatten(1).mean(1)], dim=1)


def test_large_images_are_evaluated_few_at_a_time() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 224, 224, 3), dtype=np.uint8)
    as_is = Preprocessing((224, 224), mean=(0, 0, 0), std=(1, 1, 1))
    source = PixelSource(Split(ArrayImages(pixels), np.zeros(60, np.int64)), [as_is], CPU)
    head = Sizes()
    found = predict(head, source, 1024)
    assert max(head.seen) == sources.EVALUATION_NUMBERS["cpu"] // (3 * 224 * 224) == 27
    assert sum(head.seen) == len(found.predicted) == 60
    assert [len(rows) for rows in evaluation_rows(source, 10)] == [10] * 6, "what is asked for is the most"


def test_tokens_too_and_small_things_as_many_as_asked_for() -> None:
    def features(*shape: int) -> FeatureSource:
        return FeatureSource([np.zeros((1100, *shape), np.float16)], np.zeros(1100, np.int64), CPU)

    assert len(evaluation_rows(features(17, 192), 1024)[0]) == 1024
    assert len(evaluation_rows(features(100, 768), 1024)[0]) == 2**22 // 76_800
    assert len(evaluation_rows(features(768), 1024)[0]) == 1024
