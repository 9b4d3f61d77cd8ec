"""The problem on which released code and ours are compared: a small CLIP, five batches of noise images, six classes.

The model is mini-clip in OpenAI's format: OpenAI's code runs QuickGELU, gives every text head 64 channels and rounds
its weights to float16, so here the same weights are read in this way by both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.pretraining import MINI_CLIP

MODEL = MINI_CLIP / "icons-large"
VOCABULARY = MINI_CLIP / "bpe_4k.txt.gz"
CONTEXT_LENGTH = 16

NAMES = ("cat", "dog", "teapot", "red apple", "house", "sun")
NOVEL_NAMES = ("car", "tree", "green apple")
COUNTS = (40, 21, 12, 8, 5, 2)
TEMPLATE = "a photo of a {}."

EPOCHS, STEPS_PER_EPOCH, BATCH = 4, 5, 8
"""The 20 steps are four epochs over the same five batches, so that schedules by epoch and by step are seen."""


def weights() -> dict[str, Tensor]:
    """The tensors of mini-clip by OpenAI's names, which are also open_clip's; in float32, rounded to float16."""
    return {name: value.half().float() for name, value in load_file(MODEL / "open_clip_model.safetensors").items()}


def write_model(folder: Path) -> Path:
    """A folder that `local-dir:FOLDER` names, with the weights and the configuration of OpenAI's code for them."""
    config = json.loads((MODEL / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    config["model_cfg"]["text_cfg"]["heads"] = config["model_cfg"]["text_cfg"]["width"] // 64
    config["bpe"] = VOCABULARY.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights(), folder / "open_clip_model.safetensors")
    shutil.copy(VOCABULARY, folder / VOCABULARY.name)
    return folder


def images() -> Tensor:
    """(40, 3, 32, 32) float32, as the model reads them; batch b of an epoch is rows 8 b to 8 b + 7."""
    return torch.randn(STEPS_PER_EPOCH * BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def features(model: Path) -> Tensor:
    """(40, 192) image embeddings of the problem, from the model in a folder, scaled to a mean square of 1."""
    embeddings = create_encoder(f"local-dir:{model}").image_features(images(), "embedding").detach()
    return embeddings / embeddings.square().mean().sqrt()


def second_view(rows: Tensor) -> Tensor:
    """Features of another view of the same images."""
    return rows + start(*rows.shape, scale=0.5, seed=3)


def photograph() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(50, 70, 3) uint8: an image that is larger than what the model reads, and not square."""
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def labels() -> Tensor:
    """(40,) int64: a long tail over the six classes."""
    return torch.tensor([0, 0, 0, 1, 1, 2, 3, 4] * 2 + [0, 1, 2, 0, 5, 1, 3, 0] * 3)


def batches() -> list[tuple[Tensor, Tensor]]:
    """The 20 batches, images (8, 3, 32, 32) and labels (8,), in the order of training."""
    return list(zip(images().split(BATCH), labels().split(BATCH), strict=True)) * EPOCHS


def start(*shape: int, scale: float = 0.02, seed: int = 1) -> Tensor:
    """The start of trained values, in place of each side's own random numbers."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively_start(name: str, *shape: int, seed: int) -> Tensor:
    """A start at which every trained value matters: scales and norms are near 1, all else is of size .1."""
    noise = start(*shape, scale=0.1, seed=seed)
    return 1 + noise if name.endswith(("scale", "ln.weight", "norm1.weight", "norm2.weight")) else noise


def checksum(value: Tensor) -> list[float]:
    """Norm of a tensor, and its product with a fixed vector, which tells its entries apart."""
    flat = value.detach().double().flatten()
    return [float(flat.norm()), float(flat @ torch.linspace(-1, 1, len(flat), dtype=torch.float64).cos())]
