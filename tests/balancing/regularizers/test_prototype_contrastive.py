"""The prototype contrast against a plain loop from its equation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.balancing.regularizers.prototype_contrastive import PrototypeContrastive, prototype_contrast
from tests.balancing.regularizers.steps import CLASSES, DIM, LABELS, Rows, cosine, drawn, log_softmax, step
from tests.contracts import counting_fetches, refuses

TARGETS = torch.tensor(LABELS)


def prototypes() -> Tensor:
    return F.normalize(create_prototypes(CLASSES, DIM).double(), dim=1)  # of norm 1 in float64 too


def contrast_in_a_loop(features: Rows, labels: Sequence[int], targets: Rows, temperature: float) -> list[float]:
    """CE(f P^T / T, y), one by one."""
    return [
        -log_softmax([cosine(f, p) / temperature for p in targets])[y] for f, y in zip(features, labels, strict=True)
    ]


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_prototype_contrast_follows_its_equation(temperature: float) -> None:
    rows = drawn(len(TARGETS), DIM)
    wanted = contrast_in_a_loop(rows.tolist(), TARGETS.tolist(), prototypes().tolist(), temperature)
    got = prototype_contrast(rows, TARGETS, prototypes(), temperature)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))
    plain = F.cross_entropy(rows @ prototypes().t(), TARGETS, reduction="none")  # neither unit length nor temperature
    assert not torch.allclose(plain, got, rtol=0.01)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_term_is_the_sum_of_images_and_texts(balanced: bool, text: bool) -> None:
    words = drawn(CLASSES, DIM, seed=1)
    regularizer = PrototypeContrastive(prototypes(), temperature=0.2, text=text, balanced=balanced)
    values = contrast_in_a_loop(step().embeddings.tolist(), TARGETS.tolist(), prototypes().tolist(), 0.2)
    image = sum(values) / len(values)
    if balanced:
        means = []
        for c in range(CLASSES):
            of_class = [value for value, y in zip(values, TARGETS.tolist(), strict=True) if y == c]
            means += [sum(of_class) / len(of_class)] if of_class else []
        assert len(means) == len(set(LABELS))
        image = sum(means) / len(means)
    of_text = contrast_in_a_loop(words.tolist(), range(CLASSES), prototypes().tolist(), 0.2)
    wanted = image + (sum(of_text) / CLASSES if text else 0.0)
    assert float(regularizer(step(words))) == pytest.approx(wanted, rel=1e-12)
    assert float(regularizer(step())) == pytest.approx(image, rel=1e-12)  # no text is learned: images alone
    if balanced:
        assert float(regularizer(step())) != pytest.approx(sum(values) / len(values), rel=1e-4)


def test_prototype_contrast_brings_images_and_texts_together_and_leaves_the_prototypes() -> None:
    regularizer = PrototypeContrastive(prototypes(), temperature=1.0)
    images, words = drawn(len(TARGETS), DIM).requires_grad_(), drawn(CLASSES, DIM, seed=1).requires_grad_()
    optimizer = torch.optim.AdamW([images, words, *regularizer.parameters()], lr=0.1, weight_decay=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        regularizer(step(words, embeddings=images)).backward()
        optimizer.step()
    assert F.cosine_similarity(images, prototypes()[TARGETS]).min() > 0.95
    assert F.cosine_similarity(images, words[TARGETS]).min() > 0.95
    assert torch.equal(regularizer.prototypes, prototypes())


def test_prototype_contrast_fetches_nothing() -> None:
    regularizer = PrototypeContrastive(prototypes(), balanced=True)
    rows, words = drawn(len(TARGETS), DIM).requires_grad_(), drawn(CLASSES, DIM, seed=1).requires_grad_()
    with counting_fetches() as count:
        regularizer(step(words, embeddings=rows)).backward()
    assert count["fetches"] == 0


def test_prototypes_are_saved_and_must_be_as_wide_as_the_features() -> None:
    regularizer, other = PrototypeContrastive(prototypes()), PrototypeContrastive(prototypes().flip(0))
    other.load_state_dict(regularizer.state_dict())
    assert torch.equal(other(step()), regularizer(step()))
    refuses(lambda: regularizer(step(embeddings=drawn(len(TARGETS), DIM + 1))), "embeddings")
    refuses(lambda: regularizer(step(drawn(CLASSES, DIM + 1))), "text features")
    refuses(lambda: PrototypeContrastive(torch.zeros(3)), "prototypes")
    low = PrototypeContrastive(prototypes(), balanced=True)(step(embeddings=step().embeddings.bfloat16()))
    assert low.dtype == torch.bfloat16
    assert float(low) == pytest.approx(float(PrototypeContrastive(prototypes(), balanced=True)(step())), rel=0.03)
