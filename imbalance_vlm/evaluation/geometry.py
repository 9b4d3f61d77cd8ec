"""How close features and classifiers are to neural collapse, and to each other.

[0] Papyan, Han, Donoho. Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training. PNAS 2020.
    (NC1 to NC4, equinorm, equiangularity, maximal angle)
[1] Liang, Zhang, Kwon, Yeung, Zou. Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive
    Representation Learning. NeurIPS 2022. (modality gap)
[2] Roy, Vetterli. The Effective Rank: A Measure of Effective Dimensionality. EUSIPCO 2007.

    NC1                tr(S_W S_B^+) / K                                            0 at collapse
    equinorm           std_k |mu_k - mu| / mean_k |mu_k - mu|                       0
    equiangularity     std over k != k' of cos(mu_k - mu, mu_k' - mu)               0
    max angle          mean over k != k' of |cos(mu_k - mu, mu_k' - mu) + 1/(K-1)|  0
    NC3 self-duality   | W / |W| - M / |M| |^2, M = (mu_k - mu), Frobenius          0, at most 4
    NC4                share of samples where argmax_k (w_k.h + b_k) is not         0
                       argmin_k |h - mu_k|

Differs from [0] in the following, none of which matters with equally many samples per class or at collapse:
  - every class weighs the same, whatever its number of samples: mu = mean_k mu_k, S_W = mean_k of the covariance within
    class k. On a long tail the head classes would otherwise dominate the number.
  - K is the number of classes that have samples; rows of the other classes are left out (a simplex without some of its
    corners is a simplex again, once it is centred).
  - W is centred too. A vector added to every row of W changes no softmax.

Standard deviations are over the population. Everything is computed in float64, block by block: near collapse, nearly
equal numbers are subtracted. Undefined values are NaN and not 0, which would
look like a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imbalance_vlm.components.ranges import Count
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Column, Evaluator, SplitFeatures
from imbalance_vlm.heads.base import Head
from imbalance_vlm.training.second_stage import embedded
from imbalance_vlm.values import mistake

Array = Tensor | NDArray[np.generic]

BLOCK_ROWS = 512
"""Rows per block: 512 x 8142 cosines are 33 MB in float64."""


class Geometry(Evaluator):
    """The metrics of this module for the embeddings of a split, with the trained head's own classifier.

    Args:
        head: gives the embeddings and the classifier; corrections after training are left out.
        features: of the splits.
        text: (C, d) text features in the space of the embeddings, or None without a text tower.
        split: whose images are measured.
    """

    columns = tuple(
        Column(name, digits=1, smaller_is_better=False)
        if name == "effective_rank_text"
        else Column(name, digits=3, smaller_is_better=True)
        for name in (
            "nc1",
            "equinorm_image",
            "equiangularity_image",
            "max_angle_image",
            "self_duality",
            "nc4",
            "equinorm_text",
            "equiangularity_text",
            "max_angle_text",
            "effective_rank_text",
            "equiangularity_text_image",
            "max_angle_text_image",
            "self_duality_text_image",
            "modality_gap",
        )
    )

    def __init__(
        self,
        head: Head,
        features: SplitFeatures,
        text: Callable[[], Tensor | None],
        *,
        split: Literal["train", "test"] = "test",
    ) -> None:
        self.head = head
        self.features = features
        self.text = text
        self.split = split

    @torch.no_grad()
    def compute(self) -> Iterator[tuple[str, float]]:
        view = self.features.of(self.split, "random" if self.split == "train" else "plain")
        source = embedded(self.head, view, self.features.device)
        embeddings = torch.as_tensor(source.views[0])  # (N, d)
        norm = embeddings.norm(dim=1).mean()  # scaled to the length of the text's rows; the classifier compensates
        weight, bias = self.head.classifier()
        scores = geometry(
            embeddings / norm, source.labels, self.features.data.num_classes, weight * norm, self.text(), bias=bias
        )
        yield from scores.items()


def geometry(
    features: Array,
    labels: Array,
    num_classes: int,
    classifier: Array | None = None,
    text_features: Array | None = None,
    *,
    bias: Array | None = None,
    block_rows: int = BLOCK_ROWS,
) -> dict[str, float]:
    """Every metric of this module that the inputs allow, by name.

    Always "nc1", "equinorm_image", "equiangularity_image", "max_angle_image".
    With a classifier "self_duality" and "nc4", a share in [0, 1].
    With text features "equinorm_text", "equiangularity_text", "max_angle_text", "effective_rank_text" over all classes;
    "equiangularity_text_image" and "max_angle_text_image" (angles between the text of one class and the images of
    another), "self_duality_text_image" (the text as the classifier) and "modality_gap" over the classes that have
    samples.

    Each modality is centred by its own mean over classes. Nothing is scaled to unit norm: pass the features as the
    classifier reads them (for CLIP: unit rows of both modalities).

    Undefined values are NaN: all metrics that compare classes when fewer than 2 of them are present, NC1 and cosines
    where class means coincide, self-duality of a classifier whose rows are all the same. Only the gap and, with a
    classifier, NC4 are defined for a single class; without any samples they are NaN as well.

    Args:
        features: (N, d) image features of any floating dtype.
        labels: (N,) whole numbers in [0, C).
        num_classes: C.
        classifier: (C, d) weight of a linear or cosine classifier of these features (unit rows for a cosine one).
        text_features: (C, d), one row per class.
        bias: (C,) of the classifier; None is 0.
        block_rows: samples, or rows of a (K, K) matrix, per block. Memory besides the inputs is about
            3 block_rows * K + 4 C d + 2 d^2 float64 numbers.

    Raises:
        InputError: shapes that do not fit, labels out of range, non-finite numbers.

    >>> corners = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]])
    >>> scores = geometry(corners.repeat(4, 1), torch.arange(3).repeat(4), 3, classifier=7 * corners)
    >>> [name for name, value in scores.items() if abs(value) > 1e-12]
    []
    """
    for name, value in (("num_classes", num_classes), ("block_rows", block_rows)):
        if problem := mistake(Count, value):
            raise InputError(f"`{name}` {problem}")
    images = _matrix("features", features)  # (N, d)
    targets = _labels(labels, len(images), num_classes).to(images.device)  # (N,)
    shape = (num_classes, images.shape[1])
    weight = None if classifier is None else _matrix("classifier", classifier, shape).to(images.device, torch.float64)
    text = None if text_features is None else _matrix("text_features", text_features, shape)
    if bias is not None and weight is None:
        raise InputError("`bias` belongs to a `classifier`, got none; pass both, or neither")
    shift = None if bias is None else _vector("bias", bias, num_classes).to(images.device)

    means = class_means(images, targets, num_classes, block_rows)  # (C, d)
    present = ~means.isnan().any(1)  # (C,)
    present_means = means[present]  # (K, d)
    angles = angles_between(present_means, present_means, block_rows)
    scores = {
        "nc1": nc1(images, targets, means, block_rows),
        "equinorm_image": equinorm(present_means),
        "equiangularity_image": angles.equiangularity,
        "max_angle_image": angles.max_angle,
    }
    if weight is not None:
        scores["self_duality"] = self_duality(weight[present], present_means)
        scores["nc4"] = nc4(images, means, weight, shift, block_rows)
    if text is not None:
        text = text.to(images.device, torch.float64)
        angles = angles_between(text, text, block_rows)
        across = angles_between(text[present], present_means, block_rows)
        scores |= {
            "equinorm_text": equinorm(text),
            "equiangularity_text": angles.equiangularity,
            "max_angle_text": angles.max_angle,
            "effective_rank_text": effective_rank(text),
            "equiangularity_text_image": across.equiangularity,
            "max_angle_text_image": across.max_angle,
            "self_duality_text_image": self_duality(text[present], present_means),
            "modality_gap": modality_gap(text[present], present_means),
        }
    return scores


def class_means(features: Tensor, labels: Tensor, num_classes: int, block_rows: int = BLOCK_ROWS) -> Tensor:
    """(C, d) float64 mean feature of each class, from (N, d) and (N,); NaN for a class without samples."""
    total = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
    for rows in _blocks(len(features), block_rows):
        total.index_add_(0, labels[rows], features[rows].double())
    counts = torch.bincount(labels, minlength=num_classes)
    return total / counts[:, None]  # 0 / 0 is NaN


def nc1(features: Tensor, labels: Tensor, means: Tensor, block_rows: int = BLOCK_ROWS) -> float:
    """NC1, tr(S_W S_B^+) / K, of features (N, d) with labels (N,) and class means (C, d), NaN rows for absent classes.

        S_W = mean_k mean_{i in k} (h_i - mu_k)(h_i - mu_k)^T        S_B = mean_k (mu_k - mu)(mu_k - mu)^T

    The pseudo-inverse leaves out the directions in which the class means differ by no more than the rounding error of
    the features' dtype: their inverse would be noise. NaN when no direction is left.

    Source: [0], "(NC1) Variability collapse".
    """
    present_means = means[~means.isnan().any(1)]  # (K, d)
    if len(present_means) < 2:
        return math.nan
    num_present, width = present_means.shape
    _, singular, directions = torch.linalg.svd(_centred(present_means), full_matrices=False)
    entry = float(present_means.square().mean().sqrt())
    noise = torch.finfo(features.dtype).eps * entry * (math.sqrt(num_present) + math.sqrt(width))  # of a random matrix
    above_noise = singular > noise
    if not bool(above_noise.any()):
        return math.nan
    # tr(S_W S_B^+) = mean_k mean_{i in k} |D (h_i - mu_k)|^2, D = S_B^(-1/2) on the directions above the noise
    whiten = directions[above_noise] / singular[above_noise, None] * math.sqrt(num_present)  # (r, d)
    counts = torch.bincount(labels, minlength=len(means))  # (C,)
    trace = 0.0
    for rows in _blocks(len(features), block_rows):
        offsets = (features[rows].double() - means[labels[rows]]) @ whiten.t()  # (b, r)
        trace += float((offsets.square().sum(1) / counts[labels[rows]]).sum()) / num_present
    return trace / num_present


def equinorm(rows: Tensor) -> float:
    """std / mean of the norms of centred rows (K, d); NaN for fewer than 2 rows or rows that are all the same.

    Source: [0], "(NC2) Convergence to simplex ETF".
    """
    if len(rows) < 2:
        return math.nan
    norms = _centred(rows).norm(dim=1)  # (K,)
    return float(norms.std(correction=0) / norms.mean())


class Angles(NamedTuple):
    """The standard deviation of cosines, and their mean distance to -1/(K-1)."""

    equiangularity: float
    max_angle: float


def angles_between(rows: Tensor, partners: Tensor, block_rows: int = BLOCK_ROWS) -> Angles:
    """Cosines between row k of one matrix (K, d) and row k' != k of another (or the same), each centred by its mean.

    The (K, K) cosines are computed block_rows rows at a time. NaN for fewer than 2 rows, or when a row is the mean.

    Source: [0], "(NC2) Convergence to simplex ETF"; across modalities as well as within one.
    """
    count = len(rows)
    if count < 2:
        return Angles(math.nan, math.nan)
    left, right = _unit(_centred(rows)), _unit(_centred(partners))  # (K, d)
    pairs = count * (count - 1)
    mean = float(left.sum(0) @ right.sum(0) - (left * right).sum()) / pairs
    squares = distance = 0.0
    for block in _blocks(count, block_rows):
        cosine = left[block] @ right.t()  # (b, K)
        deviation = cosine - mean
        deviation[:, block].fill_diagonal_(0.0)
        squares += float(deviation.square().sum())
        cosine += 1 / (count - 1)
        cosine[:, block].fill_diagonal_(0.0)
        distance += float(cosine.abs().sum())
    return Angles(math.sqrt(squares / pairs), distance / pairs)


def self_duality(weight: Tensor, means: Tensor) -> float:
    """NC3, | W / |W| - M / |M| |^2 with centred W and M (K, d); NaN for fewer than 2 rows or where a norm is 0.

    It is 2 - 2 cos(W, M) as long vectors: 0 when they are proportional, 2 when orthogonal, 4 when opposite.

    Source: [0], "(NC3) Convergence to self-duality".
    """
    if len(means) < 2:
        return math.nan
    first, second = _centred(weight), _centred(means)
    return float((first / first.norm() - second / second.norm()).square().sum())


def nc4(
    features: Tensor, means: Tensor, weight: Tensor, bias: Tensor | None = None, block_rows: int = BLOCK_ROWS
) -> float:
    """NC4: the share of (N, d) features for which classifier and nearest class mean name different classes.

    Both choose among the classes that have a mean, (C, d) with NaN rows for absent classes; the classifier is a weight
    (C, d) and a bias (C,). NaN without samples.

    Source: [0], "(NC4) Simplification to nearest class-center".
    """
    present = ~means.isnan().any(1)
    if not len(features):
        return math.nan
    centre = means[present].mean(0)  # (d,); subtracted so that distances to nearby means lose fewer digits
    centred, weight = means[present] - centre, weight[present].double()  # (K, d)
    shift = None if bias is None else bias[present].double()
    half = centred.square().sum(1) / 2  # (K,)
    differ = 0
    for rows in _blocks(len(features), block_rows):
        block = features[rows].double()  # (b, d)
        nearest = ((block - centre) @ centred.t() - half).argmax(1)  # (b,) least |h - mu_k|^2 = |h|^2 - 2 (...)
        logits = block @ weight.t()  # (b, K)
        chosen = (logits if shift is None else logits + shift).argmax(1)
        differ += int((nearest != chosen).sum())
    return differ / len(features)


def modality_gap(text: Tensor, image: Tensor) -> float:
    """|mean_k t_k - mean_k h_k| of text features (K, d) and class means (K, d); NaN without rows.

    Source: [1], on unit features; every class weighs the same.
    """
    return float((text.double().mean(0) - image.double().mean(0)).norm())


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the eigenvalues of the Gram matrix of centred rows (K, d), scaled to sum to 1.

    Between 1 and min(K - 1, d); K - 1 for a simplex. NaN for fewer than 2 rows or rows that are all the same. The
    eigenvalues are the squared singular values of the rows: no (K, K) matrix is needed.

    Source: [2], of the Gram matrix.
    """
    if len(rows) < 2:
        return math.nan
    values = torch.linalg.svdvals(_centred(rows)).square()  # (min(K, d),)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _centred(rows: Tensor) -> Tensor:
    """(K, d) float64 rows minus their mean; a row that differs from it only by rounding becomes 0."""
    exact = rows.double()
    centred = exact - exact.mean(0)
    rounding = 16 * torch.finfo(torch.float64).eps * exact.norm(dim=1, keepdim=True).amax()
    return torch.where(centred.norm(dim=1, keepdim=True) > rounding, centred, 0.0)


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; NaN where there is no direction."""
    return rows / rows.norm(dim=1, keepdim=True)


def _blocks(length: int, block_rows: int) -> list[slice]:
    return [slice(first, min(first + block_rows, length)) for first in range(0, length, block_rows)]


def _tensor(name: str, values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.ascontiguousarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"`{name}` must be an array of numbers, got one of {array.dtype}")
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns about read-only arrays


def _matrix(name: str, values: Array, shape: tuple[int, int] | None = None) -> Tensor:
    rows = _tensor(name, values)
    expected = "(N, d)" if shape is None else str(shape)
    fits = rows.ndim == 2 and rows.shape[1] > 0 if shape is None else tuple(rows.shape) == shape
    if not fits or not rows.is_floating_point():
        row = "pooled feature for each sample" if shape is None else "row for each class, as wide as `features`"
        raise InputError(
            f"`{name}` must be {expected} floating-point numbers, got {tuple(rows.shape)} {rows.dtype}; "
            f"it needs a {row}"
        )
    return _finite(name, rows)


def _vector(name: str, values: Array, length: int) -> Tensor:
    vector = _tensor(name, values)
    if vector.shape != (length,) or not vector.is_floating_point():
        raise InputError(
            f"`{name}` must be ({length},) floating-point numbers, got {tuple(vector.shape)} {vector.dtype}; "
            "it needs a value for each class"
        )
    return _finite(name, vector)


def _finite(name: str, values: Tensor) -> Tensor:
    for block in _blocks(len(values), 8192):
        broken = ~values[block].isfinite()
        if bool(broken.any()):
            row = block.start + int(broken.reshape(len(broken), -1).any(1).nonzero()[0])
            raise InputError(f"`{name}` must be finite, got nan or inf in row {row}; check how that row was computed")
    return values


def _labels(values: Array, length: int, num_classes: int) -> Tensor:
    labels = _tensor("labels", values)
    is_integer = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if labels.shape != (length,) or not is_integer:
        raise InputError(
            f"`labels` must be ({length},) whole numbers, one for each row of `features`, "
            f"got {tuple(labels.shape)} {labels.dtype}"
        )
    labels = labels.long()
    if length and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise InputError(
            f"`labels` must lie in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}; "
            "check `num_classes`"
        )
    return labels
