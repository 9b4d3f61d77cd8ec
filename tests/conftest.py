"""A tiny model and a tiny folder of images, in real formats: made in a second, without downloads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.broken_inputs import Workspace, make_workspace

TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
}
"""open_clip's configuration of a model whose image tower has 4 + 1 tokens."""

COLOURS = {
    "red_apple": (220, 30, 30),
    "green_leaf": (40, 190, 60),
    "blue_car": (30, 60, 220),
    "white_cup": (235, 235, 230),
}
COUNTS = dict(zip(COLOURS, (24, 12, 6, 3), strict=True))


@pytest.fixture(autouse=True)
def _separate_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own cache and working folder."""
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads slow tiny tensors down, also in subprocesses
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`local-dir:...` of an open_clip model with random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny_clip")
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**TINY_CLIP["model_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def write_images(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Noisy images of one colour per class, as PNG."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = rng.normal(0, 40, (20, 20, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with class folders: 24, 12, 6 and 3 training images, and 5 test images each."""
    root = tmp_path_factory.mktemp("images") / "colours"
    write_images(root / "train", COUNTS)
    write_images(root / "test", dict.fromkeys(COLOURS, 5), seed=1)
    return root


@pytest.fixture
def recipe(images: Path, tiny_clip: str) -> dict[str, object]:
    """A linear probe of the tiny model on the tiny images."""
    return {
        "name": "tiny",
        "data": {"name": "folder", "root": str(images)},
        "encoder": {"name": tiny_clip},
        "tuning": "linear_probe",
        "head": "linear",
        "balancing": {"loss": "balanced_softmax"},
        "training": {"epochs": 3, "batch_size": 16},
        "evaluation": {"groups": {"many": 12, "few": 6}},
    }


@pytest.fixture
def workspace(tmp_path: Path, tiny_clip: str, capsys: pytest.CaptureFixture[str]) -> Workspace:
    """A folder of images with a recipe for them, for a test to spoil."""
    return make_workspace(tmp_path, tiny_clip, capsys)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all matrix products that a test computes with `@`."""
    sizes: list[int] = []
    multiply = torch.Tensor.__matmul__

    def recorded(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = multiply(self, other)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", recorded)
    return sizes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests, and those that need what this machine lacks, are skipped with their reason."""
    reasons = {
        "slow": None if os.environ.get("IMBALANCE_VLM_SLOW") else "takes minutes; set IMBALANCE_VLM_SLOW=1",
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "hub": None if os.environ.get("IMBALANCE_VLM_HUB") else "needs a model hub; set IMBALANCE_VLM_HUB=1",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
