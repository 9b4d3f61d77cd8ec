"""Tokens in an image tower against a pass in plain loops, and the towers that take none."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor

from imbalance_vlm import InputError
from imbalance_vlm.tuning.prompt.vision_tokens import VisionTokens
from tests.tuning.prompt.contexts import TEXT, no_plain_head, tuning_of
from tests.tuning.prompt.vision_models import VISION, TowerOnly, batch, context_of, encoder, perturbed, slow_pass, tower


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("sizes", [(), (2,), (2, 2), (3, 3, 3), (1, 4, 2)])
def test_tokens_enter_as_in_a_pass_in_loops(sizes: tuple[int, ...], pool: str) -> None:
    net = tower(pool_type=pool)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randn(n, 32, generator=generator, dtype=torch.float64).requires_grad_() for n in sizes]
    pixels = batch(2, torch.float64)[0]
    features = VisionTokens(TowerOnly(net), "test")(pixels, tokens)  # type: ignore[arg-type]
    wanted = slow_pass(net, pixels, tokens, pool)
    torch.testing.assert_close(features, wanted, rtol=1e-10, atol=1e-10)
    if tokens:
        aim = torch.randn(features.shape, generator=generator, dtype=torch.float64)
        ours = torch.autograd.grad((features * aim).sum(), tokens)
        theirs = torch.autograd.grad((wanted * aim).sum(), tokens)
        for first, second in zip(ours, theirs, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(features, net(pixels), atol=1e-3)


def test_without_tokens_the_tower_is_untouched() -> None:
    net = tower()
    pixels = batch(2, torch.float64)[0]
    images = VisionTokens(TowerOnly(net), "test")  # type: ignore[arg-type]
    assert torch.equal(images(pixels, ()), net(pixels))
    no_tokens = [torch.zeros(0, 32, dtype=torch.float64)] * 3
    torch.testing.assert_close(images(pixels, no_tokens), net(pixels), rtol=1e-12, atol=1e-12)


def test_a_tower_of_timm_takes_tokens_in_any_place() -> None:
    """They have no position: inserted by hand before the image's own, they have the same effect."""
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, pre_norm=True
    )
    perturbed(net)
    tokens = torch.randn(2, 32, dtype=torch.float64)
    pixels = batch(2, torch.float64)[0]
    features = VisionTokens(TowerOnly(net), "test")(pixels, [tokens])  # type: ignore[arg-type]
    x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(pixels))))
    x = torch.cat([net.norm_pre(tokens).expand(2, -1, -1), x], 1)
    torch.testing.assert_close(features, net.forward_head(net.norm(net.blocks(x)[:, 2:])))


def test_a_pass_leaves_nothing_in_the_tower() -> None:
    net = tower()
    images = VisionTokens(TowerOnly(net), "test")  # type: ignore[arg-type]
    wrong = [torch.zeros(2, 32, dtype=torch.float64)] * 2 + [torch.zeros(2, 32)]  # another dtype is fine
    images(batch(2, torch.float64)[0], wrong)
    with pytest.raises(RuntimeError):
        images(torch.zeros(2, 5, 16, 16, dtype=torch.float64), wrong)
    for module in net.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize("tokens", [[torch.zeros(2, 16)], [torch.zeros(2, 32)] * 4, [torch.zeros(32)]])
def test_tokens_that_do_not_fit_are_refused(tokens: list[Tensor]) -> None:
    with pytest.raises(InputError, match=r"`tokens` must be tensors of shape \(n, 32\).* at most 3 blocks"):
        VisionTokens(TowerOnly(tower()), "test")(batch(1, torch.float64)[0], tokens)  # type: ignore[arg-type]


# -- other towers -----------------------------------------------------------------------------------------------------

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
TOWERS = {
    "vit_relpos_medium_patch16_cls_224": r"VisionTransformerRelPos has relative position biases \(rel_pos\)",
    "eva02_base_patch16_clip_224": r"Eva has rotary positions \(rope\)",
    "vit_pe_core_base_patch16_224": r"Eva has rotary positions \(rope\)",
}


def encoder_with(tower_name: str) -> Any:
    """An open_clip model whose image tower is timm's."""
    net: Any = open_clip.CLIP(16, VISION, TEXT).eval()
    net.visual = timm.create_model(tower_name, **SIZES).eval()
    return encoder(net=net)


@pytest.mark.parametrize("name", ["vpt", "ivlp", "maple", "promptsrc"])
@pytest.mark.parametrize("tower_name", TOWERS)
def test_towers_whose_attention_uses_positions_are_refused(name: str, tower_name: str) -> None:
    context = context_of(encoder=encoder_with(tower_name))
    tuning = tuning_of(name)
    with pytest.raises(InputError, match=f"method '{name}' inserts tokens .*, and {TOWERS[tower_name]}"):
        tuning.head(context, no_plain_head)
    tuning.close()
    assert all(parameter.requires_grad for parameter in context.encoder.module.parameters())


@torch.no_grad()
def test_a_tower_of_eva_without_rotary_positions_takes_tokens() -> None:
    clip = encoder_with("eva_giant_patch14_clip_224")
    net, pixels = clip.module.visual, torch.randn(2, 3, 16, 16)
    images = VisionTokens(clip, "vpt")
    torch.testing.assert_close(images(pixels, ()), clip.image_features(pixels, "embedding"), rtol=0, atol=0)
    tokens = [torch.randn(3, 32), torch.randn(3, 32)]
    x = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(pixels)], dim=1) + net.pos_embed
    for block, prompt in zip(net.blocks, tokens, strict=True):
        x = block(torch.cat([x, prompt.expand(2, -1, -1)], dim=1))[:, :5]
    wanted = net.forward_head(net.norm(x))
    torch.testing.assert_close(images(pixels, tokens), wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(wanted, images(pixels, ()))
