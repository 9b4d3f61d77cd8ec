"""Prototype and image-text contrasts against plain loops, and prototypes that come to their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from imbalance_vlm.balancing.prototype_assignment import PrototypeAssigner, prototypes_for
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm import InputError
from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.image_text_contrast import ImageTextContrast, image_text_contrast
from imbalance_vlm.balancing.regularizers.prototype_contrastive import PrototypeContrastive, prototype_contrast
from tests.contracts import counting_fetches, refuses

CLASSES, DIM = 4, 6
LABELS = torch.tensor([0, 0, 0, 2, 3, 0, 2])  # class 1 is not in the batch

Rows = Sequence[Sequence[float]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(text: Tensor | None = None, frozen: Tensor | None = None, embeddings: Tensor | None = None) -> StepOutputs:
    rows = drawn(len(LABELS), DIM) if embeddings is None else embeddings
    return StepOutputs(rows, LABELS, torch.zeros(len(LABELS), CLASSES), text, frozen)


def prototypes() -> Tensor:
    return F.normalize(create_prototypes(CLASSES, DIM).double(), dim=1)  # of norm 1 in float64 too


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def log_softmax(row: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(z - max(row)) for z in row)) + max(row)
    return [z - total for z in row]


# -- prototype contrast ----------------------------------------------------------------------------------------------


def contrast_in_a_loop(features: Rows, labels: Sequence[int], targets: Rows, temperature: float) -> list[float]:
    """CE(f P^T / T, y), one by one."""
    return [
        -log_softmax([cosine(f, p) / temperature for p in targets])[y] for f, y in zip(features, labels, strict=True)
    ]


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_prototype_contrast_is_its_equation(temperature: float) -> None:
    rows = drawn(len(LABELS), DIM)
    wanted = contrast_in_a_loop(rows.tolist(), LABELS.tolist(), prototypes().tolist(), temperature)
    got = prototype_contrast(rows, LABELS, prototypes(), temperature)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))
    plain = F.cross_entropy(rows @ prototypes().t(), LABELS, reduction="none")  # neither unit length nor temperature
    assert not torch.allclose(plain, got, rtol=0.01)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_the_term_is_images_and_texts(balanced: bool, text: bool) -> None:
    words = drawn(CLASSES, DIM, seed=1)
    regularizer = PrototypeContrastive(prototypes(), temperature=0.2, text=text, balanced=balanced)
    values = contrast_in_a_loop(seen().embeddings.tolist(), LABELS.tolist(), prototypes().tolist(), 0.2)
    image = sum(values) / len(values)
    if balanced:
        means = []
        for c in range(CLASSES):
            own = [value for value, y in zip(values, LABELS.tolist(), strict=True) if y == c]
            means += [sum(own) / len(own)] if own else []
        assert len(means) == 3
        image = sum(means) / len(means)
    of_text = contrast_in_a_loop(words.tolist(), range(CLASSES), prototypes().tolist(), 0.2)
    wanted = image + (sum(of_text) / CLASSES if text else 0.0)
    assert float(regularizer(seen(words))) == pytest.approx(wanted, rel=1e-12)
    assert float(regularizer(seen())) == pytest.approx(image, rel=1e-12)  # no text is learned: images alone
    if balanced:
        assert float(regularizer(seen())) != pytest.approx(sum(values) / len(values), rel=0.01)


def test_prototype_contrast_brings_images_and_texts_together_and_leaves_the_prototypes() -> None:
    regularizer = PrototypeContrastive(prototypes(), temperature=1.0)
    images, words = drawn(len(LABELS), DIM).requires_grad_(), drawn(CLASSES, DIM, seed=1).requires_grad_()
    optimizer = torch.optim.AdamW([images, words, *regularizer.parameters()], lr=0.1, weight_decay=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        regularizer(seen(words, embeddings=images)).backward()
        optimizer.step()
    assert F.cosine_similarity(images, prototypes()[LABELS]).min() > 0.95
    assert F.cosine_similarity(images, words[LABELS]).min() > 0.95
    assert torch.equal(regularizer.prototypes, prototypes())


def test_prototype_contrast_has_the_gradient_of_its_value_and_fetches_nothing() -> None:
    regularizer = PrototypeContrastive(prototypes(), balanced=True)
    rows, words = drawn(len(LABELS), DIM).requires_grad_(), drawn(CLASSES, DIM, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda e, t: regularizer(seen(t, embeddings=e)), (rows, words))
    with counting_fetches() as count:
        regularizer(seen(words, embeddings=rows)).backward()
    assert count["fetches"] == 0


def test_prototypes_are_saved_moved_and_as_wide_as_what_they_draw() -> None:
    regularizer, other = PrototypeContrastive(prototypes()), PrototypeContrastive(prototypes().flip(0))
    other.load_state_dict(regularizer.state_dict())
    assert torch.equal(other(seen()), regularizer(seen()))
    refuses(lambda: regularizer(seen(embeddings=drawn(len(LABELS), DIM + 1))), "embeddings")
    refuses(lambda: regularizer(seen(drawn(CLASSES, DIM + 1))), "text features")
    refuses(lambda: PrototypeContrastive(torch.zeros(3)), "prototypes")
    low = PrototypeContrastive(prototypes(), balanced=True)(seen(embeddings=seen().embeddings.bfloat16()))
    assert low.dtype == torch.bfloat16
    assert float(low) == pytest.approx(float(PrototypeContrastive(prototypes(), balanced=True)(seen())), rel=0.03)


# -- image-text contrast ---------------------------------------------------------------------------------------------


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
            found = log_softmax([cosine(ours[i], other) / temperature for other in theirs])
            soft = [math.exp(z) for z in log_softmax([cosine(old[i], other) / temperature for other in new])]
            same = [j for j in range(size) if labels[j] == labels[i]]
            for j in range(size):
                hard = 1 / len(same) if j in same else 0.0
                total -= ((1 - share) * hard + share * soft[j]) * found[j] / size
    return total / 2


def sides(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and a text for each."""
    return drawn(len(LABELS), DIM, seed=seed), drawn(len(LABELS), DIM, seed=seed + 1)


def test_image_text_contrast_is_its_equation() -> None:
    (images, texts), frozen = sides(), sides(7)
    listed, old = (images.tolist(), texts.tolist()), (frozen[0].tolist(), frozen[1].tolist())
    plain = image_text_contrast(images, texts, LABELS, 0.3)
    assert float(plain) == pytest.approx(image_text_in_a_loop(*listed, LABELS.tolist(), 0.3), rel=1e-12)
    for distill in (0.0, 0.5, 0.9):
        got = image_text_contrast(images, texts, LABELS, 0.3, frozen, distill)
        wanted = image_text_in_a_loop(*listed, LABELS.tolist(), 0.3, old, distill)
        assert float(got) == pytest.approx(wanted, rel=1e-12)
        assert (float(got) == pytest.approx(float(plain))) is (distill == 0.0)
    assert float(plain) != pytest.approx(float(clips(images, texts)), rel=1e-3)


def clips(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP's own contrast: an image's text is right, all others are wrong."""
    scaled, own = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).t() / 0.3, torch.arange(len(images))
    return (F.cross_entropy(scaled, own) + F.cross_entropy(scaled.t(), own)) / 2


def test_without_two_texts_of_a_class_it_is_clips_contrast() -> None:
    images, texts = sides()
    own = torch.arange(len(images))
    torch.testing.assert_close(image_text_contrast(images, texts, own, 0.3), clips(images, texts))
    shared = drawn(CLASSES, DIM, seed=1)[LABELS]
    torch.testing.assert_close(image_text_contrast(images, shared, LABELS, 0.3), clips(images, shared))


def test_the_frozen_model_is_a_teacher_and_learns_nothing() -> None:
    images, texts = (side.clone().requires_grad_() for side in sides())
    frozen = tuple(side.clone().requires_grad_() for side in sides(7))
    image_text_contrast(images, texts, LABELS, 0.3, frozen).backward()  # type: ignore[arg-type]
    assert images.grad is not None
    assert texts.grad is not None
    assert all(side.grad is None for side in frozen)


def test_the_image_text_regularizer_reads_the_texts_of_the_batch() -> None:
    words, old = drawn(CLASSES, DIM, seed=1), drawn(CLASSES, DIM, seed=2)
    rows = seen().embeddings.tolist()
    texts, frozen = words[LABELS].tolist(), old[LABELS].tolist()
    regularizer = ImageTextContrast(temperature=0.3, distill=0.4)
    alone = image_text_in_a_loop(rows, texts, LABELS.tolist(), 0.3)
    taught = image_text_in_a_loop(rows, texts, LABELS.tolist(), 0.3, (rows, frozen), 0.4)
    assert float(regularizer(seen(words))) == pytest.approx(alone, rel=1e-12)
    assert float(regularizer(seen(words, old))) == pytest.approx(taught, rel=1e-12)
    refuses(lambda: regularizer(seen()), "text features")
    refuses(lambda: regularizer(seen(words[:, 1:])), "text features")


def test_image_text_contrast_is_finite_at_the_temperature_of_clip_in_bfloat16() -> None:
    images, texts = (side.bfloat16().requires_grad_() for side in sides())
    value = image_text_contrast(images, texts, LABELS, 0.01, sides(7))
    value.backward()
    assert value.dtype == torch.bfloat16
    assert torch.isfinite(value)
    assert torch.isfinite(images.grad).all()


# -- which prototype is whose ----------------------------------------------------------------------------------------


def test_prototypes_go_to_the_classes_that_point_their_way() -> None:
    made = create_prototypes(CLASSES, DIM, seed=3)
    order = torch.tensor([2, 0, 3, 1])
    classes = made[order] + 0.05 * drawn(CLASSES, DIM).float()
    got = prototypes_for(CLASSES, DIM, classes, "auto", 3)
    assert torch.equal(got, made[order])
    assert torch.equal(prototypes_for(CLASSES, DIM, seed=3), made)
    assert not torch.equal(got, made)


def test_prototypes_given_out_are_not_shared() -> None:
    prototypes_for(CLASSES, DIM).zero_()
    assert prototypes_for(CLASSES, DIM).norm() > 1


@pytest.mark.parametrize(("kind", "classes"), [("simplex", 5), ("orthoplex", 9), ("optimised", 20)])
def test_every_kind_can_be_given_out(kind: str, classes: int) -> None:
    like = drawn(classes, 5).float()
    got = prototypes_for(classes, 5, like, kind, 1)  # type: ignore[arg-type]
    made = create_prototypes(classes, 5, kind=kind, seed=1)  # type: ignore[arg-type]
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, made.tolist()))
    cosines = (F.normalize(like, dim=1) * F.normalize(got, dim=1)).sum()
    assert cosines > (F.normalize(like, dim=1) * made).sum()


def test_an_assigner_follows_the_embeddings_then_decides_for_good() -> None:
    made = create_prototypes(CLASSES, DIM, seed=3)
    assigner = PrototypeAssigner(made)
    order = torch.tensor([2, 0, 3, 1])
    centroids = [[0.0] * DIM for _ in range(CLASSES)]
    for step in range(3):
        labels = torch.tensor([0, 1, 1, 3])  # class 2 never comes
        rows = made[order][labels] + 0.3 * drawn(4, DIM, seed=step).float()
        assigner.observe(rows, labels)
        for c in range(CLASSES):
            own = [(row / row.norm()).tolist() for row, y in zip(rows, labels.tolist(), strict=True) if y == c]
            for k in range(DIM):
                if own:
                    mean = sum(row[k] for row in own) / len(own)
                    centroids[c][k] = mean if step == 0 else 0.9 * centroids[c][k] + 0.1 * mean
    torch.testing.assert_close(assigner.centroids, torch.tensor(centroids))
    resumed = PrototypeAssigner(torch.zeros(CLASSES, DIM))
    resumed.load_state_dict(assigner.state_dict())
    assert torch.equal(resumed.assign(), assigner.assign())
    assert torch.equal(assigner.assign(), made[order])  # the class never seen got what was left
    assigner.observe(made, torch.arange(CLASSES))
    resumed.load_state_dict(assigner.state_dict())
    assert torch.equal(assigner.assign(), made[order])
    assert torch.equal(resumed.assign(), made[order])


def test_class_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="`class_features` must have the shape of `prototypes`"):
        prototypes_for(CLASSES, DIM, torch.zeros(CLASSES, DIM + 1))
    refuses(lambda: prototypes_for(20, 5, None, "simplex"), "kind")
    refuses(lambda: PrototypeAssigner(torch.zeros(3)), "prototypes")
