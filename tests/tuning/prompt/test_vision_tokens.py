"""Towers that take no tokens are refused by every prompt method, in words and before any work."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer

from imbalance_vlm import InputError, catalogue
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.vision_tokens import VisionTokens

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
TOWERS = {
    "vit_relpos_medium_patch16_cls_224": r"VisionTransformerRelPos has relative position biases \(rel_pos\)",
    "eva02_base_patch16_clip_224": r"Eva has rotary positions \(rope\)",
    "vit_pe_core_base_patch16_224": r"Eva has rotary positions \(rope\)",
}


def encoder(tower: str) -> Any:
    model: Any = open_clip.CLIP(16, VISION, TEXT).eval()
    model.visual = timm.create_model(tower, **SIZES).eval()
    return OpenClipEncoder(model, Any, SimpleTokenizer(context_length=16), "tiny", "random", None, "", "fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vpt", "ivlp", "maple", "promptsrc"])
@pytest.mark.parametrize("tower", TOWERS)
def test_towers_whose_attention_computes_with_positions_are_refused(name: str, tower: str) -> None:
    task = Task(encoder(tower), "embedding", ("cat", "dog"), (), ("a {}.",), torch.device("cpu"), 1, 0, False)
    tuning = catalogue.PROMPTS.get(name).load()()
    with pytest.raises(InputError, match=f"method '{name}' puts tokens among those of the image, and {TOWERS[tower]}"):
        tuning.head(task, lambda: pytest.fail("a prompt method makes its own head"))
    tuning.close()
    assert all(parameter.requires_grad for parameter in task.encoder.module.parameters())


@torch.no_grad()
def test_a_tower_of_eva_without_rotations_takes_tokens() -> None:
    made = encoder("eva_giant_patch14_clip_224")
    tower, pixels = made.module.visual, torch.randn(2, 3, 16, 16)
    images = VisionTokens(made, "vpt")
    torch.testing.assert_close(images(pixels, ()), made.image_features(pixels, "embedding"), rtol=0, atol=0)
    tokens = [torch.randn(3, 32), torch.randn(3, 32)]
    x = torch.cat([tower.cls_token.expand(2, -1, -1), tower.patch_embed(pixels)], dim=1) + tower.pos_embed
    for block, own in zip(tower.blocks, tokens, strict=True):
        x = block(torch.cat([x, own.expand(2, -1, -1)], dim=1))[:, :5]
    wanted = tower.forward_head(tower.norm(x))
    torch.testing.assert_close(images(pixels, tokens), wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(wanted, images(pixels, ()))
