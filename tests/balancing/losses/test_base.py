"""Each loss against its oracle, each comparison against a wrong loss, and the reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.components import catalogue
from tests.balancing.losses.oracles import CASES, Case

SAMPLES = 10


def assert_matches_oracle(case: Case, loss: str, settings: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (SAMPLES, len(case.counts)))
    targets = np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 0])  # of unequal sizes, and the last class absent
    wanted = case.values(logits.tolist(), targets.tolist())
    criterion = create_loss(loss, case.counts, **settings, reduction="none")
    got = criterion(torch.from_numpy(logits), torch.from_numpy(targets))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_its_equation(case: Case) -> None:
    assert_matches_oracle(case, case.loss, case.settings)


@pytest.mark.parametrize("case", [case for case in CASES if case.stand_in], ids=str)
def test_the_comparison_rejects_a_wrong_loss(case: Case) -> None:
    assert case.stand_in is not None
    with pytest.raises(AssertionError):
        assert_matches_oracle(case, *case.stand_in)


@pytest.mark.parametrize("name", catalogue.LOSSES.names())
def test_every_loss_has_an_oracle_that_can_fail(name: str) -> None:
    assert any(case.loss == name and case.stand_in for case in CASES), f"add '{name}' to CASES in oracles.py"


def test_an_empty_class_takes_no_part_in_the_prior_based_losses() -> None:
    """The value is that of the same problem without the class, and its logit gets no gradient."""
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, 2, 0])
    smoothed = {"label_smoothing": 0.1}
    for name, settings in {
        "balanced_softmax": smoothed,
        "logit_adjustment": smoothed,
        "vs": {},
        "lade": {"alpha": 0.7},
        "equalization": {"lam": 0.0},
        "seesaw": {},
        "gaussian_clouded": {"s_n": 0.0, "head_scale": 25.0},
    }.items():
        value = create_loss(name, LongTail([30, 0, 4], allow_empty=True), **settings)(logits, targets)
        without = create_loss(name, [30, 4], **settings)(logits[:, [0, 2]], targets // 2)
        torch.testing.assert_close(value, without)
        (grad,) = torch.autograd.grad(value, logits)
        assert torch.all(grad[:, 1] == 0)


WEIGHTS: dict[str, dict[str, Any]] = {
    "weighted": {},
    "class_balanced": {"beta": 0.99},
    "ldam": {"beta": 0.99, "head_scale": 25.0},
}
"""The losses with class weights, and settings that use them."""

SKEWED = (torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.0, 3.0], [1.0, 1.0, 1.0]]).double(), torch.tensor([0, 0, 2]))


@pytest.mark.parametrize(("name", "settings"), WEIGHTS.items())
def test_reductions_divide_by_what_they_are_named_after(name: str, settings: dict[str, Any]) -> None:
    counts = [50, 10, 2]
    weights = {
        "weighted": [1 / n for n in counts],
        "class_balanced": [1 / sum(0.99**k for k in range(n)) for n in counts],
        "ldam": [1 / sum(0.99**k for k in range(n)) for n in counts],
    }[name]
    weights = [w * 3 / sum(weights) for w in weights]
    got = {how: create_loss(name, counts, reduction=how, **settings)(*SKEWED) for how in ("none", "batch", "weights")}
    total = sum(got["none"].tolist())
    assert float(got["batch"]) == pytest.approx(total / 3, rel=1e-12)
    assert float(got["weights"]) == pytest.approx(total / (2 * weights[0] + weights[2]), rel=1e-12)


def test_the_weights_reduction_of_cross_entropy_is_torchs_weighted_mean() -> None:
    weights = torch.tensor([1 / 50, 1 / 10, 1 / 2], dtype=torch.float64)
    wanted = torch.nn.functional.cross_entropy(*SKEWED, weight=weights)
    torch.testing.assert_close(create_loss("weighted", [50, 10, 2], reduction="weights")(*SKEWED), wanted)


@pytest.mark.parametrize("form", [list, np.array, lambda t: np.array(t, np.uint16), lambda t: torch.tensor(t).int()])
def test_targets_of_any_whole_numbers_are_accepted(form: Any) -> None:
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    loss = create_loss("balanced_softmax", [5, 4])
    assert torch.equal(loss(logits, form([0, 1, 1])), loss(logits, torch.tensor([0, 1, 1])))


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([0.0, 1.0], r"got shape \(2,\) of type torch.float64"),
        (torch.tensor([True, False]), r"got shape \(2,\) of type torch.bool"),
        (["a", "b"], r"must be 2 class indices, got \['a', 'b'\]"),
        ([[0], [1, 0]], "must be 2 class indices"),
        (None, "must be 2 class indices, got None"),
        ([0], r"got shape \(1,\)"),
        ([0, 2], r"must lie in 0\.\.1, got 0\.\.2"),
        (torch.tensor([0, 1], device="meta"), "on the device of the logits, cpu, got them on meta"),
    ],
)
def test_other_targets_are_refused_in_words(targets: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_loss("balanced_softmax", [5, 4])(torch.zeros(2, 2), targets)


@pytest.mark.parametrize("logits", [[[0.0, 1.0]], np.zeros((2, 2)), torch.zeros(2, 2, dtype=torch.int64)])
def test_logits_must_be_a_tensor_of_floating_point_numbers(logits: Any) -> None:
    with pytest.raises(InputError, match="`logits` must be a tensor of floating-point numbers, got"):
        create_loss("balanced_softmax", [5, 4])(logits, [0, 1])
