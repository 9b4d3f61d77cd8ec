"""Zero-shot evaluation for `tools/pretrain.py`: top-1 and top-5 over all classes of Icons-LT's test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from tools.pretraining.data import Captioner, image_tensor
from tools.pretraining.model import image_features, plain_attention, text_features


@dataclass(frozen=True)
class TestSet:
    """Test images with their labels, and the number of training images per class (for many, medium and few)."""

    __test__ = False  # not a test case

    images: np.ndarray  # (N, 32, 32, 3) uint8
    labels: np.ndarray  # (N,)
    names: list[str]
    train_counts: np.ndarray  # (C,)


@torch.no_grad()
def classifier(model: CLIP, captioner: Captioner, classes: int, templates: int) -> Tensor:
    """One direction per class: the mean of its normalised text features over the templates, (C, D)."""
    ids = np.arange(classes)
    per_template = [text_features(model, captioner(ids, np.full(classes, t))) for t in range(templates)]
    return F.normalize(torch.stack(per_template).mean(0), dim=-1)


@torch.no_grad()
def encode(model: CLIP, images: np.ndarray, mean: Tensor, std: Tensor, batch: int = 512) -> Tensor:
    """(N, D) features of length one of (N, 32, 32, 3) uint8 images."""
    device = model.logit_scale.device
    rows = np.arange(len(images))
    with plain_attention():
        parts = [
            image_features(model, (image_tensor(images, rows[i : i + batch], device) - mean) / std)
            for i in range(0, len(images), batch)
        ]
    return torch.cat(parts)


def zero_shot(
    model: CLIP, tests: TestSet, tokenizer: Any, templates: Sequence[str], mean: Tensor, std: Tensor
) -> dict[str, float]:
    """Accuracies in percent: top-1, top-5, and top-1 of classes with > 100, 20..100 and < 20 training images."""
    was_training = model.training
    model.eval()
    captioner = Captioner(tokenizer, tests.names, templates, model.context_length)
    weights = classifier(model, captioner, len(tests.names), len(templates))
    best = (encode(model, tests.images, mean, std) @ weights.T).topk(5, dim=1).indices.cpu().numpy()  # (N, 5)
    model.train(was_training)
    hits = best == tests.labels[:, None]
    counts = tests.train_counts[tests.labels]
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    scores = {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(1).mean())}
    scores |= {name: float(hits[mask, 0].mean()) for name, mask in groups.items() if mask.any()}
    return {name: round(100 * score, 2) for name, score in scores.items()}


def icons_lt() -> TestSet | None:
    """Icons-LT's test images, or None if the package or its dataset is missing."""
    try:
        from imbalance_vlm import create_dataset

        dataset = create_dataset("icons_lt")
    except (ImportError, FileNotFoundError):
        return None
    train, test = dataset.splits["train"], dataset.splits["test"]
    names = list(dataset.class_names)
    images = np.stack([np.asarray(test.images[i]) for i in range(len(test))])
    return TestSet(images, test.labels, names, np.bincount(train.labels, minlength=len(names)))
