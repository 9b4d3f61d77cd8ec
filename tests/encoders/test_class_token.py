"""The last block for the class token alone: the same features and gradients, from less work."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import create_encoder
from imbalance_vlm.encoders.class_token import class_token_only
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.tuning.prompt.vision_tokens import VisionTokens
from tests.tuning.peft.tiny_towers import METHODS

MODULE = "imbalance_vlm.encoders.open_clip.class_token_only"


@pytest.fixture
def encoder(tiny_clip: str) -> OpenClipEncoder:
    encoder: Any = create_encoder(tiny_clip)
    encoder.module.double()
    return encoder


class Lengths:
    """How many tokens the MLP of the last block receives in each pass."""

    def __init__(self, encoder: OpenClipEncoder) -> None:
        self.seen: list[int] = []
        block: Any = encoder.module.visual.transformer.resblocks[-1]  # type: ignore[union-attr, index]
        block.mlp.register_forward_pre_hook(lambda mlp, args: self.seen.append(args[0].shape[1]))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradients(encoder: OpenClipEncoder, parameters: list[nn.Parameter], kind: str) -> tuple[Tensor, ...]:
    features = encoder.image_features(images(), kind)
    return features, *torch.autograd.grad(features.square().sum(), parameters, allow_unused=True)


@pytest.mark.parametrize("kind", ["embedding", "class_token"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_features_and_gradients_of_all_tokens(
    encoder: OpenClipEncoder, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = Lengths(encoder)
    with METHODS[name].apply(encoder.module, 20) as tuned:
        for parameter in tuned.parameters():
            nn.init.normal_(parameter, std=0.3)
        ours = gradients(encoder, tuned.parameters(), kind)
        monkeypatch.setattr(MODULE, lambda visual: nullcontext())
        wanted = gradients(encoder, tuned.parameters(), kind)
    assert lengths.seen == [1, 8 if name.startswith("vpt") else 5]
    for first, second in zip(ours, wanted, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_inserted_tokens_leave_the_class_token(
    encoder: OpenClipEncoder, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = Lengths(encoder)
    encoder.module.requires_grad_(False)
    vision, tokens = VisionTokens(encoder, "test"), [torch.randn(3, 32).double().requires_grad_() for _ in range(depth)]
    features = vision(images(), tokens)
    gradient = torch.autograd.grad(features.square().sum(), tokens)
    monkeypatch.setattr(MODULE, lambda visual: nullcontext())
    wanted = vision(images(), tokens)
    torch.testing.assert_close(features, wanted)
    for first, second in zip(gradient, torch.autograd.grad(wanted.square().sum(), tokens), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert lengths.seen == [1, 8]


def test_all_tokens_are_computed_where_they_are_read_or_no_gradient_is_recorded(encoder: OpenClipEncoder) -> None:
    lengths = Lengths(encoder)
    assert encoder.image_features(images(), "tokens").shape == (3, 5, 32)
    with torch.no_grad():
        encoder.image_features(images(), "embedding")
    assert lengths.seen == [5, 5]


@pytest.mark.parametrize(
    "settings",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_heads": 2},
        {"output_tokens": True},
        {"qk_norm": True},
        {"scale_attn": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_towers_are_left_alone(settings: dict[str, Any]) -> None:
    net = open_clip.transformer.VisionTransformer(16, 8, 32, 2, 2, 4.0, output_dim=16, **settings)
    with class_token_only(net):
        assert "forward" not in net.transformer.resblocks[-1].__dict__


def test_checkpointed_blocks_and_other_networks_are_left_alone() -> None:
    net = open_clip.transformer.VisionTransformer(16, 8, 32, 2, 2, 4.0, output_dim=16)
    with class_token_only(net):
        assert "forward" in net.transformer.resblocks[-1].__dict__
    assert "forward" not in net.transformer.resblocks[-1].__dict__
    net.set_grad_checkpointing()
    with class_token_only(net):
        assert "forward" not in net.transformer.resblocks[-1].__dict__
    with class_token_only(nn.Linear(2, 2)):
        pass
