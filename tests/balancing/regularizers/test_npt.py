"""NPT against plain loops from its equations."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.cpt import CPT
from imbalance_vlm.balancing.regularizers.npt import NPT, simplex_gap
from tests.balancing.regularizers.steps import CLASSES, DIM, LABELS, Rows, cosine, drawn, step, unit, words
from tests.contracts import refuses


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
    means = {}
    for k in sorted(set(labels)):
        of_class = [unit(row) for row, y in zip(images, labels, strict=True) if y == k]
        means[k] = [sum(column) / len(of_class) for column in zip(*of_class, strict=True)]
    return means


def isomorphism_in_a_loop(means: dict[int, list[float]], text: Rows) -> float:
    """mean_k (1 - cos(h_k, t_k))."""
    return sum(1 - cosine(row, text[k]) for k, row in means.items()) / len(means)


@pytest.mark.parametrize("settings", [{}, {"form": "uniformity", "temperature": 0.4}, {"centre": True}])
def test_npt_follows_its_equation(settings: dict[str, Any]) -> None:
    text, outputs = words(), step(words())
    rows = (text - text.mean(0) if settings.get("centre") else text).tolist()
    spread = uniformity_in_a_loop(rows, 0.4) if "form" in settings else simplex_in_a_loop(rows)
    follows = isomorphism_in_a_loop(means_in_a_loop(outputs.embeddings.tolist(), LABELS), text.tolist())
    for lmc, mmi in ((1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0)):
        got = float(NPT(lmc=lmc, mmi=mmi, **settings)(outputs))
        assert got == pytest.approx(lmc * spread + mmi * follows, rel=1e-12)
    both = float(NPT(**settings)(outputs))
    assert both != pytest.approx(spread, rel=0.01)  # without MMI
    assert both != pytest.approx(follows, rel=0.01)  # without LMC


def test_every_class_has_the_same_weight_in_mmi() -> None:
    outputs = step(words())
    by_image = sum(1 - cosine(e, words()[y].tolist()) for e, y in zip(outputs.embeddings.tolist(), LABELS, strict=True))
    assert float(NPT(lmc=0.0)(outputs)) != pytest.approx(by_image / len(LABELS), rel=0.01)
    more = step(
        words(), embeddings=torch.cat([outputs.embeddings] * 2 + [outputs.embeddings[:1]]), labels=(*LABELS * 2, 0)
    )
    least = step(words(), embeddings=outputs.embeddings[3:], labels=LABELS[3:])
    doubled = step(words(), embeddings=torch.cat([outputs.embeddings] * 2), labels=LABELS * 2)
    npt = NPT(lmc=0.0)
    assert float(npt(doubled)) == pytest.approx(float(npt(outputs)), rel=1e-12)
    assert float(npt(more)) != pytest.approx(float(npt(outputs)), rel=1e-6)
    assert float(npt(least)) != pytest.approx(float(npt(outputs)), rel=1e-6)


def test_npt_is_zero_at_a_shared_simplex_and_nowhere_near_it() -> None:
    corners = F.normalize(create_prototypes(CLASSES, DIM).double(), dim=1)
    labels = torch.tensor(LABELS)
    at = step(corners, embeddings=3 * corners[labels])
    assert float(NPT()(at)) == pytest.approx(0.0, abs=1e-12)
    assert float(simplex_gap(words())) > 0.05
    lowest = float(NPT(form="uniformity", mmi=0.0)(at))
    assert lowest == pytest.approx(-1 / (CLASSES - 1), rel=1e-6)
    assert float(NPT(form="uniformity", mmi=0.0)(step(words()))) > lowest
    pulled = words().requires_grad_()
    optimizer = torch.optim.Adam([pulled], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        NPT(mmi=0.0)(step(pulled)).backward()
        optimizer.step()
    assert float(simplex_gap(F.normalize(pulled.detach(), dim=1))) < 1e-4


def test_the_average_of_class_means_remembers_classes_and_is_saved() -> None:
    """h <- .75 h + .25 batch; a class's first mean as it is; a class that the batch lacks keeps its mean."""
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
        got = float(regularizer(step(text, embeddings=images, labels=labels)))
        assert got == pytest.approx(isomorphism_in_a_loop(means, text.tolist()), rel=1e-12)
        resumed = NPT(lmc=0.0, momentum=0.75)
        resumed.load_state_dict(before.state_dict())
        assert float(resumed(step(text, embeddings=images, labels=labels))) == got
    assert float(NPT(lmc=0.0)(step(text, embeddings=images, labels=labels))) != pytest.approx(got, rel=0.01)
    before = regularizer.means.clone()
    regularizer.eval()(step(text))
    assert torch.equal(regularizer.means, before)
    NPT().load_state_dict(NPT().state_dict())


def test_uniformity_makes_no_matrix_of_all_pairs(products: list[int]) -> None:
    classes, width = 1500, 8
    text = words(classes, width).float().requires_grad_()
    outputs = StepOutputs(torch.randn(4, width), torch.tensor([0, 1, 2, 3]), torch.zeros(4, classes), text)
    NPT(form="uniformity")(outputs).backward()
    assert text.grad is not None
    assert torch.isfinite(text.grad).all()
    assert products
    assert max(products) <= 512 * 512


def test_impossible_inputs_of_npt_are_refused() -> None:
    many = words(DIM + 2)
    refuses(lambda: NPT()(step(many)), "uniformity", "more classes than corners")
    refuses(lambda: NPT()(step(many)), "cpt", "more classes than corners")
    refuses(lambda: NPT()(step(many)), f"{DIM + 1} corners", "more classes than corners")
    for settings in ({"form": "uniformity"}, {"lmc": 0.0}):
        assert torch.isfinite(NPT(**settings)(step(many)))
    NPT()(step(words(DIM + 1)))
    for regularizer in (NPT(), CPT()):
        refuses(lambda r=regularizer: r(step()), "text features", "no text")
        refuses(lambda r=regularizer: r(step(words(CLASSES, DIM + 1), words())), "width", "another width")
        refuses(lambda r=regularizer: r(step(words(1), words(1))), "2 classes", "one class")


def test_low_precision_is_computed_in_float32() -> None:
    text, images = words(), drawn(len(LABELS), DIM)
    for regularizer in (NPT(), NPT(form="uniformity"), CPT(clusters=2)):
        exact = float(regularizer(step(text, words(), embeddings=images)))
        low = regularizer(step(text.bfloat16(), words().bfloat16(), embeddings=images.bfloat16()))
        assert low.dtype == torch.float32
        assert float(low) == pytest.approx(exact, rel=0.03, abs=0.01)
