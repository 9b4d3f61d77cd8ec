"""CPT against plain loops from its equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.cpt import CPT, cluster_classes
from imbalance_vlm.balancing.regularizers.npt import NPT
from tests.balancing.regularizers.steps import DIM, LABELS, Rows, cosine, drawn, step, unit, words
from tests.contracts import refuses


def clusters_in_a_loop(text: Rows, members: Sequence[Sequence[int]], pairs: str) -> float:
    """1/M sum_m of the off-diagonal (cos + 1/(k_m - 1))^2, their mean or their sum."""
    total = 0.0
    for of_cluster in members:
        values = [
            (cosine(text[a], text[b]) + 1 / (len(of_cluster) - 1)) ** 2
            for a in of_cluster
            for b in of_cluster
            if a != b and len(of_cluster) > 1
        ]
        if values:
            total += sum(values) / (len(values) if pairs == "mean" else 1)
    return total / len(members)


def convergence_in_a_loop(images: Rows, labels: Sequence[int], text: Rows) -> float:
    """Mean over classes of the mean of |f/|f| - t_y/|t_y||^2."""
    means = []
    for k in sorted(set(labels)):
        of_cluster = [
            sum((a - b) ** 2 for a, b in zip(unit(row), unit(text[k]), strict=True))
            for row, y in zip(images, labels, strict=True)
            if y == k
        ]
        means.append(sum(of_cluster) / len(of_cluster))
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
    clusters = cluster_classes(related(), 3, seed=0)
    assert sorted(members.tolist() for members in clusters) == GROUPS
    assert [members.tolist() for members in clusters] == [
        members.tolist() for members in cluster_classes(related(), 3, seed=0)
    ]
    assert len(cluster_classes(related()[[0, 0, 1, 1]], 3, seed=0)) == 2  # two different rows, in three clusters


@pytest.mark.parametrize("pairs", ["mean", "sum"])
@pytest.mark.parametrize("clusters", [1, 3])
def test_cpt_follows_its_equation(clusters: int, pairs: Any) -> None:
    text, frozen, embeddings = words(6), related(), drawn(len(LABELS), DIM)
    members = GROUPS if clusters == 3 else [list(range(6))]
    terms = (
        clusters_in_a_loop(text.tolist(), members, pairs),
        convergence_in_a_loop(embeddings.tolist(), LABELS, text.tolist()),
        rotation_in_a_loop(text.tolist(), frozen.tolist()),
    )
    state = step(text, frozen, embeddings=embeddings)
    for weights in ((0.25, 0.15, 0.10), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        tetf, cc, rs = weights
        got = float(CPT(tetf=tetf, cc=cc, rs=rs, clusters=clusters, pairs=pairs)(state))
        assert got == pytest.approx(sum(w * t for w, t in zip(weights, terms, strict=True)), rel=1e-12)
    total = sum(weight * term for weight, term in zip((0.25, 0.15, 0.10), terms, strict=True))
    assert all(weight * term > 0.02 * total for weight, term in zip((0.25, 0.15, 0.10), terms, strict=True))
    if clusters == 1 and pairs == "mean":
        assert terms[0] == pytest.approx(float(NPT(mmi=0.0)(state)), rel=1e-12)  # M = 1 is the global simplex


def test_clusters_are_fixed_and_of_frozen_text_only() -> None:
    regularizer = CPT(tetf=1.0, cc=0.0, rs=0.0, clusters=3)
    for seed in (1, 2):
        text = words(6, seed=seed)
        wanted = clusters_in_a_loop(text.tolist(), GROUPS, "sum")
        assert float(regularizer(step(text, related()))) == pytest.approx(wanted, rel=1e-12)
    assert regularizer.state_dict() == {}


def test_impossible_inputs_of_cpt_are_refused() -> None:
    refuses(lambda: CPT()(step(words())), "frozen", "no frozen text")
    refuses(lambda: CPT()(step(words(), words(6))), "frozen", "other classes")
    refuses(lambda: CPT(clusters=6)(step(words(), words())), "clusters", "more clusters than classes")
    many = words(DIM + 3)
    refuses(lambda: CPT(clusters=1)(step(many, many)), "corners", "a cluster of too many classes")
    assert torch.isfinite(CPT(clusters=1, tetf=0.0)(step(many, many)))
    assert torch.isfinite(CPT()(step(words(40, 40), words(40, 40), embeddings=drawn(len(LABELS), 40))))
    alone = CPT(clusters=6, tetf=1.0, cc=0.0, rs=0.0)
    assert float(alone(step(words(6), related()))) == 0.0  # clusters of one class
    assert not np.isnan(float(alone(step(words(6), related()))))
