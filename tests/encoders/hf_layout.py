"""Names and shapes of Hugging Face's CLIPModel and SiglipModel, and weights that any machine makes the same."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

WIDTH, TEXT, LAYERS, PATCH, PLACES, CONTEXT = 32, 16, 2, 8, 4, 16
"""Width of the image and the text tower, blocks of each, side of a patch, patches of an image, tokens of a text."""


def transformer(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    }


VISION = transformer(WIDTH) | {"image_size": 16, "patch_size": PATCH}
QUICK_GELU = {"hidden_act": "quick_gelu"}
CLIP_TOKENS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
SIGLIP_TOKENS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": 12,
    "vision_config": VISION | QUICK_GELU,
    "text_config": transformer(TEXT) | {"max_position_embeddings": CONTEXT} | CLIP_TOKENS | QUICK_GELU,
}
SIGLIP_CONFIG = {
    "model_type": "siglip",
    "vision_config": VISION,
    "text_config": transformer(WIDTH) | {"max_position_embeddings": CONTEXT} | SIGLIP_TOKENS,
}


def clip_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "logit_scale": (),
        "visual_projection.weight": (12, WIDTH),
        "text_projection.weight": (12, TEXT),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": (PLACES + 1, WIDTH),
        **norm("vision_model.pre_layrnorm", WIDTH),
        **blocks("vision_model", WIDTH),
        **norm("vision_model.post_layernorm", WIDTH),
        "text_model.embeddings.token_embedding.weight": (49408, TEXT),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, TEXT),
        **blocks("text_model", TEXT),
        **norm("text_model.final_layer_norm", TEXT),
    }


def siglip_shapes() -> dict[str, tuple[int, ...]]:
    head = "vision_model.head"
    return {
        "logit_scale": (1,),
        "logit_bias": (1,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (WIDTH,),
        "vision_model.embeddings.position_embedding.weight": (PLACES, WIDTH),
        **blocks("vision_model", WIDTH),
        **norm("vision_model.post_layernorm", WIDTH),
        f"{head}.probe": (1, 1, WIDTH),
        f"{head}.attention.in_proj_weight": (3 * WIDTH, WIDTH),
        f"{head}.attention.in_proj_bias": (3 * WIDTH,),
        **linear(f"{head}.attention.out_proj", WIDTH, WIDTH),
        **norm(f"{head}.layernorm", WIDTH),
        **linear(f"{head}.mlp.fc1", 4 * WIDTH, WIDTH),
        **linear(f"{head}.mlp.fc2", WIDTH, 4 * WIDTH),
        "text_model.embeddings.token_embedding.weight": (100, WIDTH),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, WIDTH),
        **blocks("text_model", WIDTH),
        **norm("text_model.final_layer_norm", WIDTH),
        **linear("text_model.head", WIDTH, WIDTH),
    }


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def blocks(tower: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(LAYERS):
        block = f"{tower}.encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{block}.self_attn.{projection}", width, width)
        shapes |= norm(f"{block}.layer_norm1", width) | norm(f"{block}.layer_norm2", width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Numbers that depend on a tensor's name alone."""
    tensors = {}
    for name, shape in shapes.items():
        numbers = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.3, shape)
        tensors[name] = torch.as_tensor(numbers, dtype=torch.float32).reshape(shape)
    return tensors


def inputs(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Two images and two texts; with CLIP's vocabulary, between its start and end tokens."""
    rng = np.random.default_rng(7)
    images = torch.as_tensor(rng.normal(0, 1, (2, 3, 16, 16)), dtype=torch.float32)
    texts = torch.as_tensor(rng.integers(3, min(vocabulary, 1000), (2, CONTEXT)))
    if vocabulary > 49407:
        texts[:, 0], texts[0, 9:], texts[1, 6:] = 49406, 0, 0
        texts[0, 9], texts[1, 6] = 49407, 49407
    return images, texts
