"""NPT and CPT against plain loops over their equations."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.cpt import CPT, cluster_classes
from imbalance_vlm.balancing.regularizers.npt import NPT, simplex_gap
from tests.contracts import refuses

CLASSES, DIM = 5, 7
LABELS = (0, 0, 0, 2, 3, 0, 2, 4)  # class 1 is not in the batch

Rows = Sequence[Sequence[float]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(
    text: Tensor | None = None,
    frozen: Tensor | None = None,
    embeddings: Tensor | None = None,
    labels: Sequence[int] = LABELS,
) -> StepOutputs:
    rows = drawn(len(labels), DIM) if embeddings is None else embeddings
    return StepOutputs(rows, torch.tensor(labels), torch.zeros(len(labels), CLASSES), text, frozen)


def words(classes: int = CLASSES, width: int = DIM, seed: int = 1) -> Tensor:
    return F.normalize(drawn(classes, width, seed=seed), dim=1)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def unit(a: Sequence[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in a))
    return [x / norm for x in a]


# -- NPT in loops ----------------------------------------------------------------------------------------------------


def simplex_in_a_loop(text: Rows) -> float:
    """mean over k != k' of (cos(t_k, t_k') + 1/(K-1))^2."""
    count = len(text)
    values = [(cosine(text[k], text[j]) + 1 / (count - 1)) ** 2 for k in range(count) for j in range(count) if j != k]
    return sum(values) / len(values)


def uniformity_in_a_loop(text: Rows, temperature: float) -> float:
    """T mean_k log mean_{k' != k} exp(cos(t_k, t_k') / T)."""
    total = 0.0
    for k in range(len(text)):
        powers = [math.exp(cosine(text[k], text[j]) / temperature) for j in range(len(text)) if j != k]
        total += temperature * math.log(sum(powers) / len(powers))
    return total / len(text)


def means_in_a_loop(images: Rows, labels: Sequence[int]) -> dict[int, list[float]]:
    found = {}
    for k in sorted(set(labels)):
        own = [unit(row) for row, y in zip(images, labels, strict=True) if y == k]
        found[k] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    return found


def isomorphism_in_a_loop(means: dict[int, list[float]], text: Rows) -> float:
    """mean_k (1 - cos(h_k, t_k))."""
    return sum(1 - cosine(row, text[k]) for k, row in means.items()) / len(means)


@pytest.mark.parametrize("settings", [{}, {"form": "uniformity", "temperature": 0.4}, {"centre": True}])
def test_npt_is_its_equation(settings: dict[str, Any]) -> None:
    text, given = words(), seen(words())
    rows = (text - text.mean(0) if settings.get("centre") else text).tolist()
    spread = uniformity_in_a_loop(rows, 0.4) if "form" in settings else simplex_in_a_loop(rows)
    follows = isomorphism_in_a_loop(means_in_a_loop(given.embeddings.tolist(), LABELS), text.tolist())
    for lmc, mmi in ((1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0)):
        got = float(NPT(lmc=lmc, mmi=mmi, **settings)(given))
        assert got == pytest.approx(lmc * spread + mmi * follows, rel=1e-12)
    both = float(NPT(**settings)(given))
    assert both != pytest.approx(spread, rel=0.01)  # without MMI
    assert both != pytest.approx(follows, rel=0.01)  # without LMC


def test_every_class_weighs_the_same_in_mmi() -> None:
    given = seen(words())
    by_image = sum(1 - cosine(e, words()[y].tolist()) for e, y in zip(given.embeddings.tolist(), LABELS, strict=True))
    assert float(NPT(lmc=0.0)(given)) != pytest.approx(by_image / len(LABELS), rel=0.01)
    more = seen(words(), embeddings=torch.cat([given.embeddings] * 2 + [given.embeddings[:1]]), labels=(*LABELS * 2, 0))
    least = seen(words(), embeddings=given.embeddings[3:], labels=LABELS[3:])
    doubled = seen(words(), embeddings=torch.cat([given.embeddings] * 2), labels=LABELS * 2)
    npt = NPT(lmc=0.0)
    assert float(npt(doubled)) == pytest.approx(float(npt(given)), rel=1e-12)
    assert float(npt(more)) != pytest.approx(float(npt(given)), rel=1e-6)
    assert float(npt(least)) != pytest.approx(float(npt(given)), rel=1e-6)


def test_npt_is_zero_at_a_shared_simplex_and_nowhere_near_it() -> None:
    corners = F.normalize(create_prototypes(CLASSES, DIM).double(), dim=1)
    labels = torch.tensor(LABELS)
    at = seen(corners, embeddings=3 * corners[labels])
    assert float(NPT()(at)) == pytest.approx(0.0, abs=1e-12)
    assert float(simplex_gap(words())) > 0.05
    lowest = float(NPT(form="uniformity", mmi=0.0)(at))
    assert lowest == pytest.approx(-1 / (CLASSES - 1), rel=1e-6)
    assert float(NPT(form="uniformity", mmi=0.0)(seen(words()))) > lowest
    pulled = words().requires_grad_()
    optimizer = torch.optim.Adam([pulled], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        NPT(mmi=0.0)(seen(pulled)).backward()
        optimizer.step()
    assert float(simplex_gap(F.normalize(pulled.detach(), dim=1))) < 1e-4


@pytest.mark.parametrize("settings", [{}, {"form": "uniformity"}, {"centre": True}, {"momentum": 0.5}])
def test_npt_has_the_gradient_of_its_value(settings: dict[str, Any]) -> None:
    regularizer = NPT(**settings).eval()  # an average that stays where it is
    text, images = words().requires_grad_(), drawn(len(LABELS), DIM).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, e: regularizer(seen(t, embeddings=e)), (text, images))


def test_the_average_of_class_means_remembers_classes_and_is_saved() -> None:
    """h <- .75 h + .25 batch; a class's first mean as it is; a class that the batch lacks keeps its own."""
    text = words()
    batches = [
        (drawn(4, DIM, seed=seed), labels) for seed, labels in enumerate([(0, 0, 1, 1), (0, 2, 2, 2), (1, 4, 0, 4)])
    ]
    regularizer, means = NPT(lmc=0.0, momentum=0.75), {}
    for images, labels in batches:
        for k, row in means_in_a_loop(images.tolist(), labels).items():
            old = means.get(k)
            means[k] = row if old is None else [0.75 * a + 0.25 * b for a, b in zip(old, row, strict=True)]
        before = copy.deepcopy(regularizer)
        got = float(regularizer(seen(text, embeddings=images, labels=labels)))
        assert got == pytest.approx(isomorphism_in_a_loop(means, text.tolist()), rel=1e-12)
        resumed = NPT(lmc=0.0, momentum=0.75)
        resumed.load_state_dict(before.state_dict())
        assert float(resumed(seen(text, embeddings=images, labels=labels))) == got
    assert float(NPT(lmc=0.0)(seen(text, embeddings=images, labels=labels))) != pytest.approx(got, rel=0.01)
    kept = regularizer.means.clone()
    regularizer.eval()(seen(text))
    assert torch.equal(regularizer.means, kept)
    NPT().load_state_dict(NPT().state_dict())


def test_uniformity_makes_no_matrix_of_all_pairs(products: list[int]) -> None:
    classes, width = 1500, 8
    text = words(classes, width).float().requires_grad_()
    given = StepOutputs(torch.randn(4, width), torch.tensor([0, 1, 2, 3]), torch.zeros(4, classes), text)
    NPT(form="uniformity")(given).backward()
    assert text.grad is not None
    assert torch.isfinite(text.grad).all()
    assert products
    assert max(products) <= 512 * 512


def test_npt_refuses_what_cannot_be() -> None:
    many = words(DIM + 2)
    refuses(lambda: NPT()(seen(many)), "uniformity", "more classes than corners")
    refuses(lambda: NPT()(seen(many)), "cpt", "more classes than corners")
    refuses(lambda: NPT()(seen(many)), f"{DIM + 1} corners", "more classes than corners")
    for settings in ({"form": "uniformity"}, {"lmc": 0.0}):
        assert torch.isfinite(NPT(**settings)(seen(many)))
    NPT()(seen(words(DIM + 1)))
    for regularizer in (NPT(), CPT()):
        refuses(lambda r=regularizer: r(seen()), "text features", "no text")
        refuses(lambda r=regularizer: r(seen(words(CLASSES, DIM + 1), words())), "width", "another width")
        refuses(lambda r=regularizer: r(seen(words(1), words(1))), "2 classes", "one class")


def test_low_precision_is_computed_in_float32() -> None:
    text, images = words(), drawn(len(LABELS), DIM)
    for regularizer in (NPT(), NPT(form="uniformity"), CPT(clusters=2)):
        exact = float(regularizer(seen(text, words(), embeddings=images)))
        low = regularizer(seen(text.bfloat16(), words().bfloat16(), embeddings=images.bfloat16()))
        assert low.dtype == torch.float32
        assert float(low) == pytest.approx(exact, rel=0.03, abs=0.01)


# -- CPT in loops ----------------------------------------------------------------------------------------------------


def clusters_in_a_loop(text: Rows, members: Sequence[Sequence[int]], pairs: str) -> float:
    """1/M sum_m of the off-diagonal (cos + 1/(k_m - 1))^2, their mean or their sum."""
    total = 0.0
    for own in members:
        values = [
            (cosine(text[a], text[b]) + 1 / (len(own) - 1)) ** 2 for a in own for b in own if a != b and len(own) > 1
        ]
        if values:
            total += sum(values) / (len(values) if pairs == "mean" else 1)
    return total / len(members)


def convergence_in_a_loop(images: Rows, labels: Sequence[int], text: Rows) -> float:
    """Mean over classes of the mean of |f/|f| - t_y/|t_y||^2."""
    means = []
    for k in sorted(set(labels)):
        own = [
            sum((a - b) ** 2 for a, b in zip(unit(row), unit(text[k]), strict=True))
            for row, y in zip(images, labels, strict=True)
            if y == k
        ]
        means.append(sum(own) / len(own))
    return sum(means) / len(means)


def rotation_in_a_loop(text: Rows, frozen: Rows) -> float:
    """mean_c |t_c - t0_c|_1."""
    return sum(sum(abs(a - b) for a, b in zip(t, f, strict=True)) for t, f in zip(text, frozen, strict=True)) / len(
        text
    )


GROUPS = [[0, 3], [1], [2, 4, 5]]
"""Which classes are alike in `related`."""


def related() -> Tensor:
    """Unit frozen features in three tight groups, far from one another."""
    centres = F.normalize(drawn(3, DIM, seed=5), dim=1)
    group_of = {c: number for number, group in enumerate(GROUPS) for c in group}
    rows = torch.stack([centres[group_of[c]] for c in range(6)])
    return F.normalize(rows + 0.05 * drawn(6, DIM, seed=6), dim=1)


def test_clusters_are_the_groups_of_the_frozen_text() -> None:
    found = cluster_classes(related(), 3, seed=0)
    assert sorted(one.tolist() for one in found) == GROUPS
    assert [one.tolist() for one in found] == [one.tolist() for one in cluster_classes(related(), 3, seed=0)]
    assert len(cluster_classes(related()[[0, 0, 1, 1]], 3, seed=0)) == 2  # two different rows, in three clusters


@pytest.mark.parametrize("pairs", ["mean", "sum"])
@pytest.mark.parametrize("clusters", [1, 3])
def test_cpt_is_its_equation(clusters: int, pairs: Any) -> None:
    text, frozen, given = words(6), related(), drawn(len(LABELS), DIM)
    members = GROUPS if clusters == 3 else [list(range(6))]
    terms = (
        clusters_in_a_loop(text.tolist(), members, pairs),
        convergence_in_a_loop(given.tolist(), LABELS, text.tolist()),
        rotation_in_a_loop(text.tolist(), frozen.tolist()),
    )
    state = seen(text, frozen, embeddings=given)
    for weights in ((0.25, 0.15, 0.10), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        tetf, cc, rs = weights
        got = float(CPT(tetf=tetf, cc=cc, rs=rs, clusters=clusters, pairs=pairs)(state))
        assert got == pytest.approx(sum(w * t for w, t in zip(weights, terms, strict=True)), rel=1e-12)
    whole = sum(weight * term for weight, term in zip((0.25, 0.15, 0.10), terms, strict=True))
    assert all(weight * term > 0.02 * whole for weight, term in zip((0.25, 0.15, 0.10), terms, strict=True))
    if clusters == 1 and pairs == "mean":
        assert terms[0] == pytest.approx(float(NPT(mmi=0.0)(state)), rel=1e-12)  # M = 1 is the global simplex


def test_the_clusters_stay_and_are_of_frozen_text_alone() -> None:
    regularizer = CPT(tetf=1.0, cc=0.0, rs=0.0, clusters=3)
    for seed in (1, 2):
        text = words(6, seed=seed)
        wanted = clusters_in_a_loop(text.tolist(), GROUPS, "mean")
        assert float(regularizer(seen(text, related()))) == pytest.approx(wanted, rel=1e-12)
    assert regularizer.state_dict() == {}


def test_cpt_has_the_gradient_of_its_value() -> None:
    regularizer = CPT(clusters=3)
    text, images = words(6).requires_grad_(), drawn(len(LABELS), DIM).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, e: regularizer(seen(t, related(), embeddings=e)), (text, images))


def test_cpt_refuses_what_cannot_be() -> None:
    refuses(lambda: CPT()(seen(words())), "frozen", "no frozen text")
    refuses(lambda: CPT()(seen(words(), words(6))), "frozen", "other classes")
    refuses(lambda: CPT(clusters=6)(seen(words(), words())), "clusters", "more clusters than classes")
    many = words(DIM + 3)
    refuses(lambda: CPT(clusters=1)(seen(many, many)), "corners", "a cluster of too many classes")
    assert torch.isfinite(CPT(clusters=1, tetf=0.0)(seen(many, many)))
    assert torch.isfinite(CPT()(seen(words(40, 40), words(40, 40), embeddings=drawn(len(LABELS), 40))))
    alone = CPT(clusters=6, tetf=1.0, cc=0.0, rs=0.0)
    assert float(alone(seen(words(6), related()))) == 0.0  # clusters of one class
    assert not np.isnan(float(alone(seen(words(6), related()))))
