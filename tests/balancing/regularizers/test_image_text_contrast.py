"""The image-text contrast against a plain loop from its equation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.image_text_contrast import ImageTextContrast, image_text_contrast
from tests.balancing.regularizers.steps import CLASSES, DIM, LABELS, Rows, cosine, drawn, log_softmax, step
from tests.contracts import refuses

TARGETS = torch.tensor(LABELS)


def image_text_in_a_loop(
    images: Rows,
    texts: Rows,
    labels: Sequence[int],
    temperature: float,
    frozen: tuple[Rows, Rows] | None = None,
    distill: float = 0.5,
) -> float:
    total, size = 0.0, len(labels)
    teachers = frozen or (images, texts)
    share = distill if frozen else 0.0
    for ours, theirs, old, new in (
        (images, texts, teachers[0], teachers[1]),
        (texts, images, teachers[1], teachers[0]),
    ):
        for i in range(size):
            log_probs = log_softmax([cosine(ours[i], other) / temperature for other in theirs])
            soft = [math.exp(z) for z in log_softmax([cosine(old[i], other) / temperature for other in new])]
            same = [j for j in range(size) if labels[j] == labels[i]]
            for j in range(size):
                hard = 1 / len(same) if j in same else 0.0
                total -= ((1 - share) * hard + share * soft[j]) * log_probs[j] / size
    return total / 2


def features(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and a text for each."""
    return drawn(len(TARGETS), DIM, seed=seed), drawn(len(TARGETS), DIM, seed=seed + 1)


def test_image_text_contrast_follows_its_equation() -> None:
    (images, texts), frozen = features(), features(7)
    listed, old = (images.tolist(), texts.tolist()), (frozen[0].tolist(), frozen[1].tolist())
    plain = image_text_contrast(images, texts, TARGETS, 0.3)
    assert float(plain) == pytest.approx(image_text_in_a_loop(*listed, TARGETS.tolist(), 0.3), rel=1e-12)
    for distill in (0.0, 0.5, 0.9):
        got = image_text_contrast(images, texts, TARGETS, 0.3, frozen, distill)
        wanted = image_text_in_a_loop(*listed, TARGETS.tolist(), 0.3, old, distill)
        assert float(got) == pytest.approx(wanted, rel=1e-12)
        assert (float(got) == pytest.approx(float(plain))) is (distill == 0.0)
    assert float(plain) != pytest.approx(float(clips(images, texts)), rel=1e-3)


def clips(images: Tensor, texts: Tensor) -> Tensor:
    """The contrast of CLIP: an image's text is right, all others are wrong."""
    scaled, targets = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).t() / 0.3, torch.arange(len(images))
    return (F.cross_entropy(scaled, targets) + F.cross_entropy(scaled.t(), targets)) / 2


def test_contrast_is_that_of_clip_where_no_two_images_share_a_text_target() -> None:
    images, texts = features()
    targets = torch.arange(len(images))
    torch.testing.assert_close(image_text_contrast(images, texts, targets, 0.3), clips(images, texts))
    shared = drawn(CLASSES, DIM, seed=1)[TARGETS]
    torch.testing.assert_close(image_text_contrast(images, shared, TARGETS, 0.3), clips(images, shared))


def test_the_frozen_model_is_a_teacher_and_learns_nothing() -> None:
    images, texts = (side.clone().requires_grad_() for side in features())
    frozen = tuple(side.clone().requires_grad_() for side in features(7))
    image_text_contrast(images, texts, TARGETS, 0.3, frozen).backward()  # type: ignore[arg-type]
    assert images.grad is not None
    assert texts.grad is not None
    assert all(side.grad is None for side in frozen)


def test_the_image_text_regularizer_reads_the_texts_of_the_batch() -> None:
    words, old = drawn(CLASSES, DIM, seed=1), drawn(CLASSES, DIM, seed=2)
    rows = step().embeddings.tolist()
    texts, frozen = words[TARGETS].tolist(), old[TARGETS].tolist()
    regularizer = ImageTextContrast(temperature=0.3, distill=0.4)
    alone = image_text_in_a_loop(rows, texts, TARGETS.tolist(), 0.3)
    taught = image_text_in_a_loop(rows, texts, TARGETS.tolist(), 0.3, (rows, frozen), 0.4)
    assert float(regularizer(step(words))) == pytest.approx(alone, rel=1e-12)
    assert float(regularizer(step(words, old))) == pytest.approx(taught, rel=1e-12)
    refuses(lambda: regularizer(step()), "text features")
    refuses(lambda: regularizer(step(words[:, 1:])), "text features")


def test_image_text_contrast_is_finite_at_the_temperature_of_clip_in_bfloat16() -> None:
    images, texts = (side.bfloat16().requires_grad_() for side in features())
    value = image_text_contrast(images, texts, TARGETS, 0.01, features(7))
    value.backward()
    assert value.dtype == torch.bfloat16
    assert torch.isfinite(value)
    assert torch.isfinite(images.grad).all()
