"""Prototypes against the theory of spherical codes, their objective against plain loops and autograd."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import imbalance_vlm
from imbalance_vlm import InputError
from imbalance_vlm.balancing.prototypes import assign_prototypes, create_prototypes, max_cosine, uniformity, welch_bound
from imbalance_vlm.heads.prototype import PrototypeKind


def gram(rows: Tensor) -> Tensor:
    return rows.double() @ rows.double().t()


def off_diagonal(square: Tensor) -> Tensor:
    return square[~torch.eye(len(square), dtype=torch.bool)]


def random_directions(rows: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(drawn, dim=1)


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, 5), (5, 4), (100, 512), (365, 512), (513, 512)])
def test_a_simplex_has_one_cosine(classes: int, dim: int) -> None:
    prototypes = create_prototypes(classes, dim)
    assert prototypes.shape == (classes, dim)
    assert prototypes.dtype == torch.float32
    cosines = off_diagonal(prototypes @ prototypes.t())
    torch.testing.assert_close(cosines, torch.full_like(cosines, -1 / (classes - 1)), rtol=0, atol=1e-6)
    assert max_cosine(prototypes) == pytest.approx(-1 / (classes - 1), abs=1e-6)


@pytest.mark.parametrize(("classes", "dim"), [(4, 2), (9, 5), (1000, 512), (1024, 512)])
def test_an_orthoplex_has_no_acute_angle(classes: int, dim: int) -> None:
    prototypes = create_prototypes(classes, dim)
    assert max_cosine(prototypes) <= 1e-6
    cosines = prototypes @ prototypes.t()
    assert torch.all((cosines - cosines.round()).abs() < 1e-6)  # -1, 0 or 1
    assert int((cosines < -0.5).sum()) == 2 * (classes - dim)  # as many opposite pairs as it takes


def test_an_orthoplex_of_few_classes_is_orthonormal() -> None:
    prototypes = create_prototypes(3, 6, kind="orthoplex")
    torch.testing.assert_close(gram(prototypes), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("classes", "like"), [(9, "simplex"), (10, "orthoplex"), (16, "orthoplex"), (17, "optimised")])
def test_auto_takes_the_first_kind_that_exists(classes: int, like: str) -> None:
    assert torch.equal(create_prototypes(classes, 8), create_prototypes(classes, 8, kind=like))  # type: ignore[arg-type]


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (7, 20), (33, 16), (60, 8), (5, 1)])
def test_rows_have_norm_one(classes: int, dim: int) -> None:
    norms = create_prototypes(classes, dim, steps=20).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(classes), rtol=0, atol=1e-6)


# -- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dim"), [(10, 16), (24, 16), (40, 16)])
def test_prototypes_are_determined_by_the_seed(classes: int, dim: int) -> None:
    torch.manual_seed(1)
    first = create_prototypes(classes, dim, seed=3, steps=10)
    torch.manual_seed(2)  # the global generators play no part
    np.random.seed(2)
    assert first.numpy().tobytes() == create_prototypes(classes, dim, seed=3, steps=10).numpy().tobytes()
    assert not torch.allclose(first, create_prototypes(classes, dim, seed=4, steps=10), atol=0.01)


@pytest.mark.parametrize(("classes", "dim"), [(10, 16), (17, 16), (24, 16)])
def test_seed_only_rotates_a_closed_form(classes: int, dim: int) -> None:
    prototypes = [create_prototypes(classes, dim, seed=seed) for seed in range(3)]
    for first, second in itertools.combinations(prototypes, 2):
        torch.testing.assert_close(gram(first), gram(second), rtol=0, atol=1e-6)
        assert (first - second).norm() > 1


def test_rotations_favour_no_direction() -> None:
    """Without the sign fix LAPACK's first column points to one side only: the mean would be far from 0."""
    first = torch.stack([create_prototypes(3, 3, kind="orthoplex", seed=seed) for seed in range(400)])  # (S, 3, 3)
    assert first.mean(0).abs().max() < 0.15  # entries of variance 1/3: standard error .029
    torch.testing.assert_close(first.square().mean(0), torch.full((3, 3), 1 / 3), rtol=0, atol=0.08)


# -- the search ------------------------------------------------------------------------------------------------------


def objective_in_a_loop(rows: list[list[float]], temperature: float) -> float:
    """mean_i log sum_{j != i} exp(p_i.p_j / T)."""
    total = 0.0
    for i, p in enumerate(rows):
        powers = 0.0
        for j, q in enumerate(rows):
            if j != i:
                powers += math.exp(sum(a * b for a, b in zip(p, q, strict=True)) / temperature)
        total += math.log(powers)
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_objective_follows_its_equation(temperature: float) -> None:
    rows = random_directions(13, 4, dtype=torch.float64)
    value, _ = uniformity(rows, temperature, block_rows=5)
    assert value == pytest.approx(objective_in_a_loop(rows.tolist(), temperature), rel=1e-12)


def with_the_diagonal(rows: Tensor, temperature: float) -> Tensor:
    return (rows @ rows.t() / temperature).logsumexp(1).mean()


@pytest.mark.parametrize("block_rows", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [0.002, 0.07, 0.5])
def test_gradient_is_that_of_autograd(temperature: float, block_rows: int) -> None:
    rows = random_directions(13, 4, dtype=torch.float64).requires_grad_()
    masked = (rows @ rows.t() / temperature).masked_fill(torch.eye(13, dtype=torch.bool), -math.inf)
    wanted = masked.logsumexp(1).mean()
    (slope,) = torch.autograd.grad(wanted, rows)
    value, gradient = uniformity(rows, temperature, block_rows)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-9)
    (swamped,) = torch.autograd.grad(with_the_diagonal(rows, temperature), rows)
    assert not torch.allclose(gradient, swamped, rtol=0.1)  # the comparison rejects the usual published objective


def test_optimised_is_far_below_random_and_above_the_bound() -> None:
    prototypes = create_prototypes(60, 8, kind="optimised")
    random = np.mean([max_cosine(random_directions(60, 8, seed)) for seed in range(5)])
    assert welch_bound(60, 8) < max_cosine(prototypes) < 0.6 * random
    assert float(off_diagonal(gram(prototypes)).abs().max()) > welch_bound(60, 8)  # what the bound is about


def test_search_finds_known_optima() -> None:
    """A simplex, and the icosahedron: 12 points in space with largest cosine 1/sqrt(5), the best there is."""
    simplex = create_prototypes(6, 5, kind="optimised", steps=300)
    assert max_cosine(simplex) == pytest.approx(-1 / 5, abs=1e-3)
    assert max_cosine(create_prototypes(12, 3, steps=300)) == pytest.approx(1 / math.sqrt(5), abs=0.01)


def test_more_steps_find_better_prototypes() -> None:
    values = [uniformity(create_prototypes(60, 8, steps=steps), 0.07)[0] for steps in (1, 10, 100)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("block_rows", [7, 30, 60])
def test_the_size_of_blocks_changes_nothing(block_rows: int) -> None:
    expected = create_prototypes(60, 8, steps=30)
    torch.testing.assert_close(create_prototypes(60, 8, steps=30, block_rows=block_rows), expected, rtol=0, atol=1e-3)
    assert max_cosine(expected, block_rows) == pytest.approx(max_cosine(expected), abs=1e-6)


def test_no_block_is_larger_than_block_rows(products: list[int]) -> None:
    uniformity(random_directions(200, 3), 0.07, block_rows=16)
    assert max(products) == max(16 * 16, 16 * 3)
    max_cosine(random_directions(200, 3), block_rows=16)
    assert max(products) == 16 * 200


# -- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_largest_cosine_is_that_of_a_loop(dtype: torch.dtype) -> None:
    rows = (3 * random_directions(20, 5)).to(dtype)
    exact = rows.double().numpy()
    wanted = max(
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in itertools.permutations(list(exact), 2)
    )
    for block_rows in (1, 6, 20):
        assert max_cosine(rows, block_rows) == pytest.approx(wanted, abs=1e-6)


def test_welch_bound_is_reached_by_equiangular_frames() -> None:
    assert welch_bound(8142, 512) == pytest.approx(0.04278, abs=1e-5)
    assert welch_bound(5, 4) == pytest.approx(1 / 4)  # a simplex: all |cosines| are 1 / d
    assert welch_bound(6, 3) == pytest.approx(1 / math.sqrt(5))  # the six diagonals of the icosahedron
    assert welch_bound(4, 4) == welch_bound(3, 7) == 0


# -- assignment ------------------------------------------------------------------------------------------------------


def test_matching_is_the_best_of_all_permutations() -> None:
    for seed in range(5):
        prototypes, features = create_prototypes(6, 8, seed=seed), 4 * random_directions(6, 8, seed)
        cosine = (F.normalize(features, dim=1).double() @ prototypes.double().t()).tolist()
        best = max(itertools.permutations(range(6)), key=lambda order: sum(cosine[c][p] for c, p in enumerate(order)))
        order = assign_prototypes(prototypes, features, block_rows=4)
        assert order.dtype == torch.int64
        assert order.tolist() == list(best)


def test_shuffled_prototypes_are_matched_back() -> None:
    prototypes = create_prototypes(40, 32)
    order = torch.randperm(40)
    features = (prototypes[order] + 0.02 * torch.randn(40, 32)).requires_grad_()
    assert torch.equal(assign_prototypes(prototypes, features), order)


@pytest.mark.parametrize(("kind", "classes"), [("simplex", 5), ("orthoplex", 9), ("optimised", 20)])
def test_prototypes_of_every_kind_are_matched(kind: PrototypeKind, classes: int) -> None:
    features = random_directions(classes, 5)
    prototypes = create_prototypes(classes, 5, kind=kind, seed=1)
    order = assign_prototypes(prototypes, features)
    assert sorted(order.tolist()) == list(range(classes))
    assert (features * prototypes[order]).sum() > (features * prototypes).sum()


def test_common_component_of_the_features_does_not_matter() -> None:
    prototypes, around = create_prototypes(12, 6), random_directions(12, 6)
    common = F.normalize(torch.randn(1, 6), dim=1)
    across = F.normalize(around - (around @ common.t()) * common, dim=1)  # (C, d) orthogonal to what is shared
    cone = 0.95 * common + math.sqrt(1 - 0.95**2) * across  # unit rows in a narrow cone
    assert torch.equal(assign_prototypes(prototypes, cone), assign_prototypes(prototypes, across))


def test_class_without_features_gets_a_remaining_prototype() -> None:
    prototypes = create_prototypes(5, 4)
    features = prototypes.clone()
    features[2] = 0
    assert assign_prototypes(prototypes, features).tolist() == [0, 1, 2, 3, 4]


# -- wrong inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "dim", "settings", "words"),
    [
        (1, 8, {}, ["`num_classes` must be at least 2, got 1"]),
        (0, 8, {}, ["`num_classes` must be a whole number >= 1, got 0"]),
        (4.0, 8, {}, ["`num_classes` must be a whole number", "got 4.0"]),
        (4, 0, {"seed": -1}, ["`dim` must be a whole number >= 1, got 0", "`seed`", ">= 0", "got -1"]),
        (4, 8, {"kind": "simplx"}, ["`kind` must be 'auto', 'simplex'", "got 'simplx'", "Did you mean 'simplex'?"]),
        (4, 8, {"steps": 0}, ["`steps`", ">= 1", "got 0"]),
        (4, 8, {"temperature": 0.0}, ["`temperature` must be a number > 0, got 0.0"]),
        (4, 8, {"block_rows": 0}, ["`block_rows`", ">= 1", "got 0"]),
        (10, 8, {"kind": "simplex"}, ["'simplex' needs `num_classes` <= 9 in 8", "got 10", "kind='orthoplex'"]),
        (17, 8, {"kind": "simplex"}, ["'simplex' needs `num_classes` <= 9 in 8", "got 17", "kind='optimised'"]),
        (17, 8, {"kind": "orthoplex"}, ["'orthoplex' needs `num_classes` <= 16 in 8", "got 17", "kind='optimised'"]),
    ],
)
def test_impossible_prototypes_are_refused_in_words(
    classes: int, dim: int, settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        imbalance_vlm.create_prototypes(classes, dim, **settings)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words), str(error.value)


SOUND = torch.eye(4)
BROKEN = torch.tensor([[1.0, 0.0], [math.nan, 1.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: max_cosine(torch.ones(1, 3)), ["`prototypes` must have at least 2 rows to compare, got 1"]),
        (lambda: max_cosine(torch.ones(3)), ["`prototypes` must be a matrix (C, d)", "got (3,)"]),
        (lambda: max_cosine(torch.ones(3, 0)), ["`prototypes` must be a matrix (C, d)", "got (3, 0)"]),
        (lambda: max_cosine(torch.ones(3, 3).long()), ["`prototypes`", "floating-point", "got (3, 3) torch.int64"]),
        (lambda: max_cosine(BROKEN), ["`prototypes` must be finite, got nan or inf in row 1"]),
        (lambda: max_cosine(SOUND, block_rows=0), ["`block_rows` must be a whole number >= 1, got 0"]),
        (lambda: welch_bound(0, 3), ["`num_classes` must be a whole number >= 1, got 0"]),
        (lambda: welch_bound(5, -3), ["`dim` must be a whole number >= 1, got -3"]),
        (lambda: assign_prototypes(SOUND, torch.ones(5, 4)), ["`class_features`", "(4, 4), got (5, 4)", "(5, 4)"]),
        (lambda: assign_prototypes(SOUND, torch.ones(4, 6)), ["`class_features`", "(4, 4), got (4, 6)"]),
        (lambda: assign_prototypes(SOUND, torch.ones(4)), ["`class_features` must be a matrix (C, d)", "got (4,)"]),
        (lambda: assign_prototypes(SOUND[:2, :2], BROKEN), ["`class_features` must be finite", "row 1"]),
        (lambda: assign_prototypes(BROKEN, SOUND[:2, :2]), ["`prototypes` must be finite", "row 1"]),
        (lambda: assign_prototypes(SOUND, SOUND, block_rows=-1), ["`block_rows`", ">= 1", "got -1"]),
    ],
)
def test_wrong_matrices_are_refused_in_words(call: object, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        call()  # type: ignore[operator]
    assert all(word in str(error.value) for word in words), str(error.value)
