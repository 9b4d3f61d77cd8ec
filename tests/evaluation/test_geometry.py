"""Geometry metrics against plain NumPy loops, and at collapse, where theory gives their values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from imbalance_vlm import InputError, create_prototypes
from imbalance_vlm.evaluation.geometry import Geometry, angles_between, effective_rank, geometry
from imbalance_vlm.heads.linear import LinearHead
from tests.evaluation.scenes import BASE, WIDTH, Features, directions

Floats = NDArray[np.float64]
CLASSES, DIM = 7, 5

IMAGE = {"nc1", "equinorm_image", "equiangularity_image", "max_angle_image"}
CLASSIFIER = {"self_duality", "nc4"}
TEXT = {"equinorm_text", "equiangularity_text", "max_angle_text", "effective_rank_text"}
ACROSS = {"equiangularity_text_image", "max_angle_text_image", "self_duality_text_image", "modality_gap"}


# -- oracles: the metrics in plain loops -------------------------------------------------------------------------------


def centre_in_a_loop(rows: list[Floats]) -> list[Floats]:
    mean = sum(rows) / len(rows)
    return [row - mean for row in rows]


def nc1_in_a_loop(groups: list[list[Floats]]) -> float:
    means = [sum(group) / len(group) for group in groups]
    width = len(means[0])
    within, between = np.zeros((width, width)), np.zeros((width, width))
    for group, mean in zip(groups, means, strict=True):
        for sample in group:
            within += np.outer(sample - mean, sample - mean) / len(group) / len(groups)
    for row in centre_in_a_loop(means):
        between += np.outer(row, row) / len(groups)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(groups))


def equinorm_in_a_loop(rows: list[Floats]) -> float:
    norms = [math.sqrt(float(row @ row)) for row in centre_in_a_loop(rows)]
    mean = sum(norms) / len(norms)
    return math.sqrt(sum((norm - mean) ** 2 for norm in norms) / len(norms)) / mean


def angles_in_a_loop(rows: list[Floats], columns: list[Floats]) -> tuple[float, float]:
    first, second = centre_in_a_loop(rows), centre_in_a_loop(columns)
    cosines = [
        float(a @ b) / float(np.linalg.norm(a)) / float(np.linalg.norm(b))
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if i != j
    ]
    mean = sum(cosines) / len(cosines)
    spread = math.sqrt(sum((c - mean) ** 2 for c in cosines) / len(cosines))
    return spread, sum(abs(c + 1 / (len(rows) - 1)) for c in cosines) / len(cosines)


def self_duality_in_a_loop(weight: list[Floats], means: list[Floats]) -> float:
    w, m = centre_in_a_loop(weight), centre_in_a_loop(means)
    size_w = math.sqrt(sum(float(x) ** 2 for row in w for x in row))
    size_m = math.sqrt(sum(float(x) ** 2 for row in m for x in row))
    return sum((a / size_w - b / size_m) ** 2 for x, y in zip(w, m, strict=True) for a, b in zip(x, y, strict=True))


def nc4_in_a_loop(groups: list[list[Floats]], weight: list[Floats], bias: list[float]) -> float:
    means = [sum(group) / len(group) for group in groups]
    differ = []
    for group in groups:
        for sample in group:
            distances = [float(np.linalg.norm(sample - mean)) for mean in means]
            logits = [float(w @ sample) + b for w, b in zip(weight, bias, strict=True)]
            differ.append(distances.index(min(distances)) != logits.index(max(logits)))
    return sum(differ) / len(differ)


def effective_rank_in_a_loop(rows: list[Floats]) -> float:
    centred = centre_in_a_loop(rows)
    gram = np.array([[float(a @ b) for b in centred] for a in centred])
    values = [max(float(v), 0.0) for v in np.linalg.eigvalsh(gram)]
    return math.exp(-sum(v / sum(values) * math.log(v / sum(values)) for v in values if v > 0))


def oracle(
    features: Floats, labels: list[int], classifier: Floats, text: Floats, bias: list[float]
) -> dict[str, float]:
    present = sorted(set(labels))
    groups = [[row for row, label in zip(features, labels, strict=True) if label == k] for k in present]
    means = [sum(group) / len(group) for group in groups]
    seen_weight, seen_text = [classifier[k] for k in present], [text[k] for k in present]
    gap = sum(seen_text) / len(present) - sum(means) / len(present)
    expected = {
        "nc1": nc1_in_a_loop(groups),
        "equinorm_image": equinorm_in_a_loop(means),
        "self_duality": self_duality_in_a_loop(seen_weight, means),
        "nc4": nc4_in_a_loop(groups, seen_weight, [bias[k] for k in present]),
        "equinorm_text": equinorm_in_a_loop(list(text)),
        "effective_rank_text": effective_rank_in_a_loop(list(text)),
        "self_duality_text_image": self_duality_in_a_loop(seen_text, means),
        "modality_gap": math.sqrt(float(gap @ gap)),
    }
    pairs = {"image": (means, means), "text": (list(text), list(text)), "text_image": (seen_text, means)}
    for name, (rows, columns) in pairs.items():
        expected[f"equiangularity_{name}"], expected[f"max_angle_{name}"] = angles_in_a_loop(rows, columns)
    return expected


def sample(seed: int, absent: tuple[int, ...] = ()) -> dict[str, Any]:
    """Long-tailed features off the origin, a classifier that is often right, texts elsewhere."""
    rng = np.random.default_rng(seed)
    counts = [0 if k in absent else count for k, count in enumerate((20, 11, 7, 5, 3, 2, 1))]
    labels = rng.permutation(np.repeat(np.arange(CLASSES), counts))
    centres = rng.normal(0, 1, (CLASSES, DIM)) + 4
    return {
        "features": centres[labels] + rng.normal(0, 0.5, (len(labels), DIM)),
        "labels": labels,
        "classifier": centres - 4 + rng.normal(0, 0.3, (CLASSES, DIM)),
        "text_features": rng.normal(0, 1, (CLASSES, DIM)) - 2,
        "bias": rng.normal(0, 1, CLASSES),
    }


@pytest.mark.parametrize("block_rows", [1, 3, 500])
@pytest.mark.parametrize("absent", [(), (2,), (0, 3, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_equals_a_plain_loop(seed: int, absent: tuple[int, ...], block_rows: int) -> None:
    inputs = sample(seed, absent)
    scores = geometry(num_classes=CLASSES, block_rows=block_rows, **inputs)
    bias = inputs["bias"].tolist()
    expected = oracle(
        inputs["features"], inputs["labels"].tolist(), inputs["classifier"], inputs["text_features"], bias
    )
    assert scores.keys() == expected.keys() == IMAGE | CLASSIFIER | TEXT | ACROSS
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-8), name


def test_nc4_without_a_bias_is_nc4_with_zeros() -> None:
    inputs = sample(0)
    bias = inputs.pop("bias")
    assert geometry(num_classes=CLASSES, **inputs) == geometry(num_classes=CLASSES, bias=0 * bias, **inputs)


def test_nc1_with_more_and_with_fewer_classes_than_dimensions() -> None:
    """The pseudo-inverse has rank min(K - 1, d)."""
    rng = np.random.default_rng(0)
    for classes, width in ((12, 4), (4, 12)):
        labels = np.repeat(np.arange(classes), 3)
        features = rng.normal(0, 1, (classes, width))[labels] + rng.normal(0, 0.1, (len(labels), width))
        groups = [list(features[labels == k]) for k in range(classes)]
        assert geometry(features, labels, classes)["nc1"] == pytest.approx(nc1_in_a_loop(groups), rel=1e-8)


def test_tensors_arrays_and_dtypes_agree() -> None:
    inputs = {name: value.astype(np.float32) if name != "labels" else value for name, value in sample(1).items()}
    expected = geometry(num_classes=CLASSES, **inputs)
    tensors: dict[str, Any] = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
    assert geometry(num_classes=CLASSES, **tensors) == expected
    wide = {name: value.double() if name != "labels" else value.int() for name, value in tensors.items()}
    assert geometry(num_classes=CLASSES, **wide) == pytest.approx(expected, rel=1e-12)
    trained = tensors | {"classifier": torch.nn.Parameter(tensors["classifier"])}
    assert geometry(num_classes=CLASSES, **trained) == expected
    short = {name: value.bfloat16() if name != "labels" else value for name, value in tensors.items()}
    assert geometry(num_classes=CLASSES, **short) == pytest.approx(expected, rel=0.1, abs=0.05)
    for value in inputs.values():
        value.flags.writeable = False  # torch warns when it shares the memory of such arrays
    assert geometry(num_classes=CLASSES, **inputs) == expected


def test_only_the_metrics_that_the_inputs_allow_are_returned() -> None:
    inputs = sample(0)
    features, labels, classifier, text = (inputs[n] for n in ("features", "labels", "classifier", "text_features"))
    assert set(geometry(features, labels, CLASSES)) == IMAGE
    assert set(geometry(features, labels, CLASSES, classifier)) == IMAGE | CLASSIFIER
    assert set(geometry(features, labels, CLASSES, text_features=text)) == IMAGE | TEXT | ACROSS


# -- at collapse -----------------------------------------------------------------------------------------------------


def collapsed(classes: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A simplex off the origin, long-tailed labels, and every feature its class's corner."""
    corners = create_prototypes(classes, dim, kind="simplex").to(dtype)
    labels = torch.repeat_interleave(torch.arange(classes), torch.arange(classes, 0, -1))
    return (3 * corners + 0.5)[labels], labels, corners


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "dim"), [(2, 3), (6, 5), (10, 64), (65, 64)])
def test_metrics_at_collapse_have_their_theoretical_values(classes: int, dim: int, dtype: torch.dtype) -> None:
    features, labels, corners = collapsed(classes, dim, dtype)
    scores = geometry(features, labels, classes, classifier=0.2 * corners, text_features=corners - 1)
    gap, rank = scores.pop("modality_gap"), scores.pop("effective_rank_text")
    assert gap == pytest.approx(1.5 * math.sqrt(dim), rel=1e-6)
    assert rank == pytest.approx(classes - 1, rel=1e-6)
    for name, value in scores.items():
        assert value == pytest.approx(0, abs=2e-6), name


@pytest.mark.parametrize("present", [(0, 1), (1, 4, 5), (0, 2, 3, 7, 9)])
def test_classes_without_samples_do_not_hide_collapse(present: tuple[int, ...]) -> None:
    features, labels, corners = collapsed(10, 16)
    rows = torch.isin(labels, torch.tensor(present))
    scores = geometry(features[rows], labels[rows], 10, classifier=corners, text_features=corners)
    for name in set(scores) - {"modality_gap", "effective_rank_text"}:
        assert scores[name] == pytest.approx(0, abs=2e-6), name


def test_nc1_measures_the_spread_along_the_simplex() -> None:
    """Samples at mu_k +- s u for each of the K - 1 directions u of the simplex, |mu_k| = 1: S_W = s^2 / (K - 1) and
    S_B = 1 / (K - 1), both times the same projection; so NC1 = s^2 (K - 1) / K."""
    classes, spread = 6, 0.1
    corners = create_prototypes(classes, 9, kind="simplex").double()
    directions = torch.linalg.svd(corners).Vh[: classes - 1]  # (K - 1, d)
    around = spread * torch.cat([directions, -directions])  # (2 K - 2, d)
    features = (corners[:, None] + around).reshape(-1, 9)
    labels = torch.arange(classes).repeat_interleave(len(around))
    scores = geometry(features, labels, classes)
    assert scores["nc1"] == pytest.approx(spread**2 * (classes - 1) / classes, rel=1e-5)
    across = torch.linalg.svd(corners).Vh[-1]  # orthogonal to all class means: not in S_B^+
    flat = torch.cat([corners + across, corners - across])
    assert geometry(flat, torch.arange(classes).repeat(2), classes)["nc1"] == pytest.approx(0, abs=1e-9)


def test_nc1_ignores_directions_that_are_only_rounding() -> None:
    """Means on a line, turned and rounded to float32: other directions are only rounding, and not inverted."""
    rotation = create_prototypes(6, 6, kind="orthoplex")
    line = torch.arange(5.0)[:, None] * rotation[0] + 0.3  # (5, 6)
    noise = 0.1 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5).repeat(40)
    exact = 0.01 / 2 / 5  # variance .01 along the line over that of 0, 1, 2, 3, 4, over K
    balanced = noise - torch.stack([noise[labels == k].mean(0) for k in range(5)])[labels]
    assert geometry(line[labels] + balanced, labels, 5)["nc1"] == pytest.approx(exact, rel=0.3)


def test_self_duality_of_opposite_and_unrelated_classifiers() -> None:
    features, labels, corners = collapsed(5, 12)
    assert geometry(features, labels, 5, classifier=-corners)["self_duality"] == pytest.approx(4)
    elsewhere = torch.linalg.svd(corners).Vh[-4:]  # (4, d) orthogonal to every corner
    classifier = torch.cat([elsewhere, elsewhere[:1]])
    assert geometry(features, labels, 5, classifier=classifier)["self_duality"] == pytest.approx(2)


def test_adding_a_vector_to_all_rows_changes_only_the_gap() -> None:
    inputs = sample(2)
    moved = inputs | {"classifier": inputs["classifier"] + 3.0, "text_features": inputs["text_features"] + 5.0}
    scores, again = geometry(num_classes=CLASSES, **inputs), geometry(num_classes=CLASSES, **moved)
    assert scores.pop("modality_gap") != pytest.approx(again.pop("modality_gap"), rel=0.1)
    assert again == pytest.approx(scores, rel=1e-9)


def test_the_effective_rank_counts_directions_of_variation() -> None:
    assert effective_rank(torch.eye(8) + 5) == pytest.approx(7)
    assert effective_rank(torch.tensor([[1.0, 7.0], [2.0, 7.0], [5.0, 7.0]])) == pytest.approx(1)


def test_no_matrix_of_classes_by_classes_is_built(products: list[int]) -> None:
    rows = torch.randn(300, 4)
    angles_between(rows, rows, block_rows=8)
    geometry(rows.repeat(2, 1), torch.arange(300).repeat(2), 300, rows, rows, block_rows=8)
    assert max(products) == 8 * 300


# -- undefined, and wrong --------------------------------------------------------------------------------------------


def test_metrics_of_fewer_than_two_classes_are_nan() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (3, 4))
    for count in (0, 5):
        features, labels = rng.normal(0, 1, (count, 4)), np.ones(count, dtype=np.int64)
        scores = geometry(features, labels, 3, rows, rows)
        assert all(math.isfinite(scores[name]) for name in TEXT)
        defined = {"nc4", "modality_gap"} if count else set()  # one class has a mean, and is the nearest
        assert {name for name in set(scores) - TEXT if math.isfinite(scores[name])} == defined
        assert all(math.isnan(scores[name]) for name in set(scores) - TEXT - defined)
    alone = geometry(rng.normal(0, 1, (5, 4)), np.zeros(5, dtype=np.int64), 1, rows[:1], rows[:1])
    assert {name for name, value in alone.items() if not math.isnan(value)} == {"nc4", "modality_gap"}


def test_classes_with_equal_means_are_nan() -> None:
    """An empty pseudo-inverse would give NC1 its best value, 0."""
    same = torch.full((12, 3), 0.1)
    scores = geometry(same, torch.arange(12) % 4, 4, classifier=same[:4], text_features=same[:4])
    assert {name for name, value in scores.items() if not math.isnan(value)} == {"nc4", "modality_gap"}


def test_a_class_at_the_centre_has_no_angle() -> None:
    rows = torch.tensor([[0.1, 0.7], [0.2, 0.8], [0.3, 0.9]], dtype=torch.float64)
    angles = angles_between(rows, rows)
    assert math.isnan(angles.equiangularity)
    assert math.isnan(angles.max_angle)


FEATURES, LABELS, ROWS = torch.ones(6, 4), torch.arange(6) % 3, torch.ones(3, 4)
BROKEN = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, math.inf, 1, 1]])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"features": torch.ones(6, 2, 4)}, ["`features` must be (N, d)", "got (6, 2, 4)", "pooled"]),
        ({"features": FEATURES.long()}, ["`features`", "floating-point", "torch.int64"]),
        ({"features": np.array([["a"]])}, ["`features` must be an array of numbers, got one of <U1"]),
        ({"features": BROKEN.repeat(2, 1)}, ["`features` must be finite, got nan or inf in row 2"]),
        ({"labels": torch.arange(5)}, ["`labels` must be (6,) whole numbers", "got (5,)"]),
        ({"labels": torch.ones(6)}, ["`labels`", "whole numbers", "torch.float32"]),
        ({"labels": torch.ones(6, dtype=torch.bool)}, ["`labels`", "whole numbers", "torch.bool"]),
        ({"labels": torch.arange(6)}, ["`labels` must lie in [0, 3), got 0 to 5", "`num_classes`"]),
        ({"labels": torch.arange(6) - 4}, ["`labels` must lie in [0, 3), got -4 to 1"]),
        ({"num_classes": 0}, ["`num_classes` must be a whole number >= 1, got 0"]),
        ({"num_classes": 3.0}, ["`num_classes` must be a whole number >= 1, got 3.0"]),
        ({"block_rows": 0}, ["`block_rows` must be a whole number >= 1, got 0"]),
        ({"classifier": torch.ones(4, 4)}, ["`classifier` must be (3, 4)", "got (4, 4)", "as wide as `features`"]),
        ({"classifier": BROKEN}, ["`classifier` must be finite, got nan or inf in row 2"]),
        ({"text_features": torch.ones(3, 5)}, ["`text_features` must be (3, 4)", "got (3, 5)", "each class"]),
        ({"text_features": BROKEN}, ["`text_features` must be finite", "row 2"]),
        ({"classifier": ROWS, "bias": torch.ones(4)}, ["`bias` must be (3,)", "got (4,)", "a value for each class"]),
        ({"classifier": ROWS, "bias": BROKEN[2, :3]}, ["`bias` must be finite", "row 1"]),
        ({"bias": torch.ones(3)}, ["`bias` belongs to a `classifier`", "pass both"]),
    ],
)
def test_wrong_inputs_are_refused(changed: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        geometry(**{"features": FEATURES, "labels": LABELS, "num_classes": 3} | changed)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("split", "view"), [("test", "plain"), ("train", "random")])
def test_the_evaluator_measures_a_split_with_the_head_s_classifier(split: Any, view: str) -> None:
    head, features = LinearHead(WIDTH, BASE), Features(BASE, 1)
    torch.nn.init.normal_(head.layer.weight)
    torch.nn.init.normal_(head.layer.bias)
    scores = dict(Geometry(head, features, lambda: directions(BASE, 7), split=split).compute())
    assert features.read == [(split, view)]
    assert list(scores) == [column.name for column in Geometry.columns]
    rows = features.sources[split]
    embeddings = head.embed(torch.as_tensor(rows.views[0])).detach()
    norm = embeddings.norm(dim=1).mean()
    weight, bias = head.layer.weight * norm, head.layer.bias
    assert scores == geometry(embeddings / norm, rows.labels, BASE, weight, directions(BASE, 7), bias=bias)
    assert not set(dict(Geometry(head, features, lambda: None, split=split).compute())) & (TEXT | ACROSS)
