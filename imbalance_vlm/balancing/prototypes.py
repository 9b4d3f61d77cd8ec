"""Uniform prototypes: one direction per class, as far apart on the unit sphere as possible.

[0] Rankin. The Closest Packing of Spherical Caps in n Dimensions. Glasgow Mathematical Journal, 1955. (simplex for
    C <= d + 1 and orthoplex for C <= 2 d have the smallest possible maximum cosine)
[1] Papyan, Han, Donoho. Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training. PNAS 2020.
    (simplex equiangular tight frame)
[2] Li, Cao, Yuan, Fan, Yang, Feris, Indyk, Katabi. Targeted Supervised Contrastive Learning for Long-Tailed
    Recognition. CVPR 2022. (the objective of the search; classes matched to prototypes by the Hungarian algorithm)
[3] Welch. Lower Bounds on the Maximum Cross Correlation of Signals. IEEE Transactions on Information Theory, 1974.

    simplex     P = sqrt(C / (C - 1)) (I - 11^T / C) Q^T           cosine -1/(C - 1) between all    C <= d + 1
    orthoplex   C of the 2 d rows +-e_i, rotated                   largest cosine 0                 C <= 2 d
    optimised   min_P mean_i log sum_{j != i} exp(p_i.p_j / T)     whatever the search finds        any C

Differs from released code in: the sum leaves out j = i. It would add the constant exp(1/T), about 1.6 million at a T of
.07, next to which the softmax weights of the true neighbours vanish, and the gradient with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, Natural, Positive, Seed
from imbalance_vlm.components.settings import check_arguments
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.prototype import PrototypeKind

BLOCK_ROWS = 512
"""Rows of a block: 512 x 512 similarities are 1 MB, which the cache holds."""

OPERATIONS = 10**13
"""Floating-point operations of a search whose number of steps is not given: a minute or two on 2 cores."""

RATE = 0.5
"""Adam's initial learning rate, in units of 1 / sqrt(d), the size of an entry of a unit row."""


def create_prototypes(
    num_classes: int,
    dim: int,
    *,
    kind: PrototypeKind = "auto",
    seed: Seed = 0,
    steps: Count | None = None,
    temperature: Positive = 0.07,
    block_rows: Count = BLOCK_ROWS,
) -> Tensor:
    """(C, d) unit rows far apart, float32, on the CPU, in a random orientation that depends on the seed only.

    Which row belongs to which class is arbitrary: see `assign_prototypes`. (In an orthoplex, rows i and d + i are
    opposite.)

    Args:
        num_classes: C, at least 2.
        dim: d.
        kind: "simplex" (C <= d + 1), "orthoplex" (C <= 2 d), "optimised" (any C), or "auto": the first of these that
            exists.
        seed: seed of the rotation, which is uniform over all rotations (Haar measure), and of the start of the search.
        steps: steps of the search; "optimised" only. None is 400, fewer where C is large, and never below 100: a step
            costs about 4 C^2 d operations, 136 billion at 8142 x 512.
        temperature: T of the objective; "optimised" only. At lower T, the closest pairs count for more.
        block_rows: rows of the blocks in which similarities are computed; "optimised" only. It affects the result by
            rounding only; the memory besides a few (C, d) matrices is about 5 block_rows^2 numbers.

    Raises:
        InputError: an argument out of range, or a kind that does not exist for this C and d.

    >>> prototypes = create_prototypes(5, 16)
    >>> (prototypes @ prototypes.t())[0].round(decimals=4).tolist()
    [1.0, -0.25, -0.25, -0.25, -0.25]
    """
    check_arguments(
        num_classes=(Count, num_classes),
        dim=(Count, dim),
        kind=(PrototypeKind, kind),
        seed=(Natural, seed),
        steps=(Count | None, steps),
        temperature=(Positive, temperature),
        block_rows=(Count, block_rows),
    )
    if num_classes < 2:
        raise InputError("`num_classes` must be at least 2, got 1; prototypes are defined by their distances")
    resolved = resolve_kind(kind, num_classes, dim)
    rng = np.random.default_rng(seed)
    if resolved == "simplex":
        rows = _simplex(num_classes)  # (C, C - 1)
    elif resolved == "orthoplex":
        rows = _orthoplex(num_classes, dim)  # (C, d)
    else:
        start = torch.from_numpy(rng.standard_normal((num_classes, dim))).float()
        steps = steps or min(400, max(100, OPERATIONS // (4 * num_classes**2 * dim)))
        rows = _optimised(F.normalize(start, dim=1), steps, temperature, block_rows).double()  # (C, d)
    return F.normalize(rows @ _frame(dim, rows.shape[1], rng).t(), dim=1).float()  # (C, d)


def resolve_kind(kind: PrototypeKind, num_classes: int, dim: int) -> PrototypeKind:
    """The kind of prototypes that `kind` means with C classes in d dimensions.

    Raises:
        InputError: a kind that does not exist for this C and d.
    """
    if kind == "auto":
        if num_classes <= dim + 1:
            return "simplex"
        return "orthoplex" if num_classes <= 2 * dim else "optimised"
    limit = {"simplex": dim + 1, "orthoplex": 2 * dim}.get(kind, num_classes)
    if num_classes > limit:
        raise InputError(
            f"`kind` '{kind}' needs `num_classes` <= {limit} in {dim} dimensions, got {num_classes}; "
            f"pass kind='{resolve_kind('auto', num_classes, dim)}' or 'auto', or more dimensions"
        )
    return kind


def _simplex(num_classes: int) -> Tensor:
    """(C, C - 1) vertices of the regular simplex, float64.

    They are the rows of sqrt(C / (C - 1)) V, V an orthonormal basis of the space orthogonal to 1: then
    V V^T = I - 11^T / C. V is Helmert's, column k = (1, ..., 1, -k, 0, ..., 0) / sqrt(k (k + 1)), with k ones.
    """
    k = torch.arange(1, num_classes, dtype=torch.float64)  # (C - 1,)
    basis = torch.ones(num_classes, num_classes - 1, dtype=torch.float64).triu()
    basis[1:].diagonal().copy_(-k)
    basis /= (k * (k + 1)).sqrt()
    return basis * math.sqrt(num_classes / (num_classes - 1))


def _orthoplex(num_classes: int, dim: int) -> Tensor:
    """(C, d) rows e_1, ..., e_d, -e_1, ..., as many as there are classes, float64."""
    axes = torch.eye(dim, dtype=torch.float64)
    return torch.cat([axes, -axes])[:num_classes]


def _frame(dim: int, columns: int, rng: np.random.Generator) -> Tensor:
    """(d, k) orthonormal columns, uniformly distributed, float64.

    The QR decomposition of a Gaussian matrix is not uniform by itself, since LAPACK is free to choose signs, but it is
    once R's diagonal is positive (Mezzadri, How to Generate Random Matrices from the Classical Compact Groups, 2007).
    """
    q, r = torch.linalg.qr(torch.from_numpy(rng.standard_normal((dim, columns))))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def uniformity(prototypes: Tensor, temperature: float, block_rows: int = BLOCK_ROWS) -> tuple[float, Tensor]:
    """The objective at unit rows (C, d) and its gradient (C, d), in blocks and without an autograd graph.

    With l_i = log sum_{j != i} exp(p_i.p_j / T) and A_ij = exp(p_i.p_j / T - l_i), A_ii = 0:

        L = mean_i l_i          dL/dP = (A + A^T) P / (C T)

    Similarities are symmetric, so only the blocks on and above the diagonal are computed: once for all l_i, and once
    more for W = A + A^T, also symmetric. In total that is four C^2 d operations, where autograd needs six and holds
    several C x C matrices.
    """
    prototypes = prototypes.detach()
    num_classes = len(prototypes)
    normaliser = prototypes.new_full((num_classes,), -math.inf)  # (C,) l
    for rows, columns, scaled in _similarities(prototypes, temperature, block_rows):
        normaliser[rows] = torch.logaddexp(normaliser[rows], scaled.logsumexp(1))
        if rows != columns:
            normaliser[columns] = torch.logaddexp(normaliser[columns], scaled.logsumexp(0))
    gradient = torch.zeros_like(prototypes)  # (C, d)
    for rows, columns, scaled in _similarities(prototypes, temperature, block_rows):
        weight = (scaled - normaliser[rows, None]).exp_()  # (b, b') block of A
        weight += scaled.sub_(normaliser[columns]).exp_()  # and of A^T
        gradient[rows] += weight @ prototypes[columns]
        if rows != columns:
            gradient[columns] += weight.t() @ prototypes[rows]
    return float(normaliser.mean()), gradient / (num_classes * temperature)


def _similarities(prototypes: Tensor, temperature: float, block_rows: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks on and above the diagonal of P P^T / T, whose own diagonal is -inf."""
    blocks = _blocks(len(prototypes), block_rows)
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            scaled = (prototypes[rows] @ prototypes[columns].t()).div_(temperature)  # (b, b')
            if rows == columns:
                scaled.fill_diagonal_(-math.inf)
            yield rows, columns, scaled


def _optimised(start: Tensor, steps: int, temperature: float, block_rows: int) -> Tensor:
    """(C, d) unit rows after Adam from `start`, which is overwritten.

    The part of the gradient along each row is removed: renormalising would undo its step, but Adam would count it in
    the row's moments. The rate falls to 0 along half a cosine.
    """
    prototypes = start
    optimizer = torch.optim.Adam([prototypes], lr=0.0, betas=(0.9, 0.99))
    for step in range(steps):
        _, gradient = uniformity(prototypes, temperature, block_rows)
        gradient -= (gradient * prototypes).sum(1, keepdim=True) * prototypes
        prototypes.grad = gradient
        rate = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate / math.sqrt(prototypes.shape[1])
        optimizer.step()
        prototypes /= prototypes.norm(dim=1, keepdim=True)
    prototypes.grad = None
    return prototypes


def welch_bound(num_classes: int, dim: int) -> float:
    """Lower bound of the largest |cosine| of C unit vectors: sqrt((C - d) / (d (C - 1))), or 0 for C <= d.

    Source: [3]. It bounds the absolute value. The largest signed cosine may lie below it, as an orthoplex shows, whose
    opposite rows have cosine -1 and all others 0.

    Raises:
        InputError: numbers out of range.

    >>> round(welch_bound(8142, 512), 4)
    0.0428
    """
    check_arguments(num_classes=(Count, num_classes), dim=(Count, dim))
    if num_classes <= dim:
        return 0.0
    return math.sqrt((num_classes - dim) / (dim * (num_classes - 1)))


def max_cosine(prototypes: Tensor, block_rows: int = BLOCK_ROWS) -> float:
    """The largest cosine between two rows of (C, d), computed in blocks of (block_rows, C).

    Raises:
        InputError: not a matrix of at least two rows.

    >>> max_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
    0.0
    """
    check_arguments(block_rows=(Count, block_rows))
    _check_matrix("prototypes", prototypes)
    if len(prototypes) < 2:
        raise InputError(f"`prototypes` must have at least 2 rows to compare, got {len(prototypes)}")
    exact = torch.promote_types(prototypes.dtype, torch.float32)
    unit = F.normalize(prototypes.detach().to(exact), dim=1)
    highest = -math.inf
    for rows in _blocks(len(unit), block_rows):
        cosine = unit[rows] @ unit.t()  # (b, C)
        cosine[:, rows].fill_diagonal_(-math.inf)
        highest = max(highest, float(cosine.max()))
    return highest


def assign_prototypes(prototypes: Tensor, class_features: Tensor, block_rows: int = BLOCK_ROWS) -> Tensor:
    """(C,) int64 permutation such that `prototypes[permutation]` has the prototype of class c in row c.

    The sum of the cosines between classes and their prototypes is the largest possible (Hungarian matching). A
    component that all unit features share has no effect, since it adds the same to every matching. A row of zeros, for
    a class without features, gets one of the remaining prototypes.

    The matching needs one (C, C) float64 matrix: 530 MB for 8142 classes.

    Args:
        prototypes: (C, d).
        class_features: (C, d) text features or mean image features of the classes.
        block_rows: rows of the matrix filled at a time.

    Raises:
        InputError: shapes that differ, or numbers that are not finite.

    >>> assign_prototypes(torch.eye(3), torch.tensor([[0.0, 1.0, 0.1], [0.2, 0.0, 1.0], [1.0, 0.9, 0.0]])).tolist()
    [1, 2, 0]
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    check_arguments(block_rows=(Count, block_rows))
    _check_matrix("prototypes", prototypes)
    _check_matrix("class_features", class_features)
    if class_features.shape != prototypes.shape:
        raise InputError(
            f"`class_features` must have the shape of `prototypes`, {tuple(prototypes.shape)}, got "
            f"{tuple(class_features.shape)}; make prototypes with create_prototypes{tuple(class_features.shape)}"
        )
    unit = F.normalize(prototypes.detach().cpu().double(), dim=1)
    classes = F.normalize(class_features.detach().cpu().double(), dim=1)
    cost = np.empty((len(unit), len(unit)))  # cost[c, p] = -cos(class c, prototype p)
    for rows in _blocks(len(unit), block_rows):
        cost[rows] = -(classes[rows] @ unit.t()).numpy()
    return torch.from_numpy(linear_sum_assignment(cost)[1].astype(np.int64))


def _blocks(length: int, block_rows: int) -> list[slice]:
    return [slice(first, min(first + block_rows, length)) for first in range(0, length, block_rows)]


def _check_matrix(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or not rows.is_floating_point() or 0 in rows.shape:
        raise InputError(
            f"`{name}` must be a matrix (C, d) of floating-point numbers, got {tuple(rows.shape)} {rows.dtype}"
        )
    if not bool(rows.isfinite().all()):
        row = int((~rows.isfinite()).any(1).nonzero()[0])
        raise InputError(f"`{name}` must be finite, got nan or inf in row {row}")
