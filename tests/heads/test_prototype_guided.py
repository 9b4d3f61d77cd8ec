"""The guide of a linear classifier against loops from its equation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.heads.prototype_guided import PrototypeGuidedHead, moved_means
from tests.contracts import counting_fetches, refuses
from tests.heads.prototype_oracles import CLASSES, COUNTS, WIDTH, Array, features, guided_logits, stirred, targets, unit


def means_in_a_loop(means: Array, embeddings: Array, labels: list[int], momentum: float) -> Array:
    moved = means.copy()
    for c in range(len(means)):
        rows = [unit(e) for e, y in zip(embeddings, labels, strict=True) if y == c]
        if rows:
            batch = sum(rows) / len(rows)
            moved[c] = momentum * means[c] + (1 - momentum) * batch if means[c].any() else batch
    return moved


def test_class_means_follow_their_equation() -> None:
    head = PrototypeGuidedHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH)).double()
    head.means[2] = 0  # a class of which nothing is known
    start = wanted = head.means.numpy().copy()
    for seed, labels in enumerate(([0, 0, 1, 0], [1, 2, 2, 4], [2, 0, 0, 0])):  # class 3 never comes
        embeddings = head.embed(features(4, seed).double())
        head.observe(embeddings, torch.tensor(labels))
        wanted = means_in_a_loop(wanted, embeddings.numpy(), labels, 0.9)
        torch.testing.assert_close(head.means, torch.from_numpy(wanted))
    assert not np.allclose(wanted[:3], start[:3])
    assert np.array_equal(wanted[3], start[3])
    assert not head.means.requires_grad


def test_momentum_zero_takes_the_batch_means_without_a_fetch() -> None:
    head = PrototypeGuidedHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), momentum=0.0)
    with counting_fetches() as count:
        head.observe(features(), targets())
    assert count["fetches"] == 0
    rows = F.normalize(features(), dim=1)
    torch.testing.assert_close(head.means[1], rows[targets() == 1].mean(0))


def test_means_count_exactly_in_bfloat16() -> None:
    rows = torch.ones(1000, 2, dtype=torch.bfloat16)
    moved = moved_means(torch.zeros(1, 2, dtype=torch.bfloat16), rows, torch.zeros(1000, dtype=torch.int64), 0.9)
    torch.testing.assert_close(moved.float(), torch.full((1, 2), 0.5**0.5), rtol=0.01, atol=0)


def test_without_directions_the_guide_starts_with_the_first_batch() -> None:
    head = PrototypeGuidedHead(WIDTH, CLASSES, init="random")
    torch.testing.assert_close(head(features()), F.linear(head.embed(features()), head.layer.weight, head.layer.bias))
    head.observe(head.embed(features()), targets())
    assert not torch.allclose(head(features()), F.linear(head.embed(features()), head.layer.weight, head.layer.bias))


def test_alpha_and_scale_are_the_strength_of_the_guide() -> None:
    def head_with(**settings: float) -> PrototypeGuidedHead:
        torch.manual_seed(0)
        return PrototypeGuidedHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), **settings)  # type: ignore[arg-type]

    for alpha, scale in ((0.5, 25.0), (2.0, 3.0), (0.0, 25.0)):
        head = head_with(alpha=alpha, scale=scale)
        wanted = guided_logits(head, features(), alpha, scale)
        torch.testing.assert_close(head(features()).double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head(features()), F.linear(head.embed(features()), head.layer.weight, head.layer.bias))


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment"])
def test_prior_added_to_the_logits_equals_one_added_to_the_linear_part(name: str) -> None:
    """The oracle adds log pi to the linear part before the guide; vs, which divides, is not of this kind."""
    head = stirred(PrototypeGuidedHead, {}).double()
    embeddings = head.embed(features().double())
    linear = F.linear(embeddings, head.layer.weight, head.layer.bias).detach().numpy()
    guide = head.classify(embeddings).detach().numpy() - linear
    wanted = []
    for row, guides, y in zip(linear, guide, targets().tolist(), strict=True):
        shifted = [z + np.log(n / sum(COUNTS)) for z, n in zip(row, COUNTS, strict=True)]
        logits_of_row = [z + g for z, g in zip(shifted, guides, strict=True)]
        wanted.append(np.log(sum(np.exp(z - logits_of_row[y]) for z in logits_of_row)))
    logits = head.classify(embeddings)
    got = create_loss(name, COUNTS, reduction="none")(logits, targets())
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))
    for other in ("cross_entropy", "vs"):
        values = create_loss(other, COUNTS, reduction="none")(logits, targets())
        assert not torch.allclose(values, torch.tensor(wanted, dtype=torch.float64), rtol=0.01)


def test_guide_has_no_gradient_and_may_move_before_the_backward_pass() -> None:
    """`observe` comes between the loss and its gradient: the gradient must be that of the means before it."""
    head = stirred(PrototypeGuidedHead, {"adapter": 6})
    unmoved = copy.deepcopy(head)
    F.cross_entropy(unmoved(features()), targets()).backward()
    embeddings = head.embed(features())
    loss = F.cross_entropy(head.classify(embeddings), targets())
    head.observe(embeddings.detach(), targets())
    loss.backward()
    for parameter, expected in zip(head.parameters(), unmoved.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_guides_that_cannot_work_are_refused() -> None:
    prototypes = create_prototypes(CLASSES, WIDTH)
    refuses(lambda: PrototypeGuidedHead(WIDTH, CLASSES, prototypes, init="prototype"), "adapter")
    refuses(lambda: PrototypeGuidedHead(WIDTH, CLASSES, None, guide="fixed"), "directions")
    refuses(lambda: PrototypeGuidedHead(WIDTH, CLASSES, prototypes[:, 1:]), "directions")
