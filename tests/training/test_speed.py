"""What makes a pass fast: fused attention, and batches of bounded memory."""

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
    """Once per block; unfused attention would show as a softmax over (B, heads, T, T). torch's attention module has a
    special kernel for a block without gradients, as the first one under AdaptFormer."""
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
    forwards = [name for name in called.names if any(kernel in name for kernel in fused) and "backward" not in name]
    assert len(forwards) == 2
    assert not any("softmax" in name for name in called.names)


# -- evaluation ------------------------------------------------------------------------------------------------------


class Sizes(nn.Module):
    """Notes how many images it receives at once."""

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
    predictions = predict(head, source, 1024)
    assert max(head.seen) == sources.EVALUATION_NUMBERS["cpu"] // (3 * 224 * 224) == 27
    assert sum(head.seen) == len(predictions.predicted) == 60
    assert [len(rows) for rows in evaluation_rows(source, 10)] == [10] * 6, "the requested size is an upper bound"


def test_only_large_features_make_smaller_batches() -> None:
    def features(*shape: int) -> FeatureSource:
        return FeatureSource([np.zeros((1100, *shape), np.float16)], np.zeros(1100, np.int64), CPU)

    assert len(evaluation_rows(features(17, 192), 1024)[0]) == 1024
    assert len(evaluation_rows(features(100, 768), 1024)[0]) == 2**22 // 76_800
    assert len(evaluation_rows(features(768), 1024)[0]) == 1024
