"""What every post-hoc correction must do.

A contract takes `make(long_tail) -> correction`, which is not fitted yet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import log_prior
from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.long_tail import LongTail
from tests.contracts import (
    Contract,
    Suite,
    close,
    is_ours,
    noting,
    offers,
    on_another_device,
    over,
    refuses,
    section_of,
    variants,
)

Make = Callable[[LongTail], PostHoc]

COUNTS = (100_000, 257, 60, 19, 3)
"""float16 does not hold the first, bfloat16 rounds the second."""
TAIL = LongTail(COUNTS)
CLASSES = len(COUNTS)

CHANGES_PREDICTIONS = {"logit_adjustment": True, "prior_shift": True, "temperature": False}
"""For each correction of the package: whether it changes predictions on a long tail, as its paper says."""


def validation(rows: int = 100, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, C) that favour frequent classes, and labels (N,) of a balanced set; float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    logits = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    logits = logits + 0.3 * log_prior(torch.tensor(TAIL.counts), logits)
    logits[torch.arange(rows), labels] += 2.0
    return logits, labels


def fitted(make: Make, long_tail: LongTail = TAIL) -> PostHoc:
    correction = make(long_tail)
    correction.fit(*validation())
    return correction


def keeps_shape_and_dtype(make: Make) -> None:
    """(N, C) logits of any floating-point type to the same, with nearly the same probabilities; also to be fitted."""
    correction = fitted(make)
    wanted = correction(validation(7)[0]).softmax(1)
    for dtype, tolerance in (
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.bfloat16, 5e-2),
        (torch.float16, 1e-2),
    ):
        got = correction(validation(7)[0].to(dtype))
        assert got.shape == (7, CLASSES), f"logits (7, {CLASSES}) became {tuple(got.shape)}"
        assert got.dtype == dtype, f"logits in {dtype} became {got.dtype}"
        assert torch.allclose(got.double().softmax(1), wanted, atol=tolerance, rtol=0), (
            f"other probabilities in {dtype}"
        )
        make(TAIL).fit(validation()[0].to(dtype), validation()[1])


def each_image_is_corrected_by_itself(make: Make) -> None:
    """Neither the order of a batch nor its other images matter; a batch of one is a batch."""
    correction, (logits, _) = fitted(make), validation(7)
    corrected = correction(logits)
    assert close(correction(logits.flip(0)), corrected.flip(0), 1e-12), "the order of the batch matters"
    assert close(correction(logits[:1]), corrected[:1], 1e-12), "an image alone gets other logits than in a batch"


def logits_are_left_as_they_are(make: Make) -> None:
    logits, labels = validation()
    correction = make(TAIL)
    correction.fit(logits, labels)
    correction(logits)
    assert torch.equal(logits, validation()[0]), "the correction changed its input"
    assert torch.equal(labels, validation()[1]), "the correction changed the labels"


def constant_added_to_a_row_does_not_matter(make: Make) -> None:
    """Probabilities do not change when all logits of an image grow by the same number, nor does what is fitted."""
    logits, labels = validation()
    grown = logits + torch.linspace(-5, 5, len(logits), dtype=torch.float64)[:, None]
    correction, other = fitted(make), make(TAIL)
    assert close(correction(grown).softmax(1), correction(logits).softmax(1), 1e-9), "probabilities change"
    other.fit(grown, labels)
    assert close(other(logits).softmax(1), correction(logits).softmax(1), 1e-9), "the fit changes"


def finite_at_extreme_logits(make: Make) -> None:
    """At logits of ±1e4, which are right or wrong beyond doubt; also fitted on them."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        rows = torch.where(torch.eye(CLASSES, dtype=torch.bool), 1e4, -1e4).to(dtype)
        for validation_rows in (rows, -rows):
            correction = make(TAIL)
            correction.fit(validation_rows, torch.arange(CLASSES))
            assert torch.isfinite(correction(rows)).all(), f"logits of ±1e4 in {dtype} give no finite logits"


def fit_is_deterministic(make: Make) -> None:
    """Fitted twice, or without and with other random numbers, a correction is the same."""
    logits, labels = validation()
    torch.manual_seed(1)
    correction = fitted(make)
    wanted = correction(logits)
    torch.manual_seed(2)
    assert torch.equal(fitted(make)(logits), wanted), "two fits differ"
    correction.fit(logits, labels)
    assert torch.equal(correction(logits), wanted), "a repeated fit differs from the first"


def state_dict_restores_a_blank_correction(make: Make) -> None:
    correction, blank = fitted(make), make(LongTail(COUNTS[::-1]))
    blank.load_state_dict(correction.state_dict())
    logits, _ = validation(7)
    assert torch.equal(blank(logits), correction(logits)), "the state_dict does not hold all that was fitted"


def casts_and_copies_keep_what_was_fitted(make: Make) -> None:
    """`.to(dtype)` there and back and deepcopy: counts stay exact, other numbers are rounded at most."""
    correction, (logits, _) = fitted(make), validation(7)
    wanted = correction(logits)
    assert torch.equal(copy.deepcopy(correction)(logits), wanted), "deepcopy changed the correction"
    for dtype in (torch.bfloat16, torch.float16):
        got = copy.deepcopy(correction).to(dtype).double()(logits)
        assert close(got.softmax(1), wanted.softmax(1), 1e-2), f".to({dtype}).double() changed the probabilities"


def moves_whole(make: Make) -> None:
    """`.to(device)` moves every tensor."""
    with on_another_device("the correction"):
        got = fitted(make).to("meta")(validation(7)[0].to("meta"))
    assert got.device.type == "meta", f"the logits stayed on {got.device}"


def gradient_is_right(make: Make) -> None:
    """torch.autograd.gradcheck in float64."""
    right = torch.autograd.gradcheck(fitted(make), (validation(4)[0].requires_grad_(),), raise_exception=False)
    assert right, "the gradient is not that of the value"


def permutation_equivariant(make: Make) -> None:
    """Renumbering the classes renumbers the corrected logits."""
    order = torch.tensor([2, 0, 4, 1, 3])
    logits, labels = validation()
    correction, renumbered = fitted(make), make(LongTail(np.array(COUNTS)[order.numpy()]))
    renumbered.fit(logits[:, order], torch.argsort(order)[labels])
    assert close(renumbered(logits[:, order]), correction(logits)[:, order], 1e-9), "the numbers of the classes matter"


def class_without_images_does_no_harm(make: Make) -> None:
    """The other classes' logits are finite and the class's own is a number or -inf."""
    correction = make(LongTail((500, 0, 60, 19, 3), allow_empty=True))
    logits, labels = validation()
    correction.fit(logits[labels != 1], labels[labels != 1])
    corrected = correction(logits)
    assert torch.isfinite(corrected[:, [0, 2, 3, 4]]).all(), "a class without images spoils the logits of the others"
    assert not torch.isnan(corrected).any(), "the logit of a class without images is not a number"


def validation_set_is_required_only_if_it_is_said_to_be(make: Make) -> None:
    correction = make(TAIL)
    if correction.needs_validation:
        refuses(lambda: correction.fit(None, None), "validation", "a choice without a validation set")
    else:
        correction.fit(None, None)
        logits, _ = validation(7)
        assert torch.equal(correction(logits), fitted(make)(logits)), "the validation set changes the result"


def reports_numbers(make: Make) -> None:
    """What `fit` returns is written to the run's result: finite numbers by name."""
    chosen = make(TAIL).fit(*validation())
    assert isinstance(chosen, dict), f"`fit` must return a dict, got {type(chosen).__name__}"
    assert all(type(value) in (float, int) for value in chosen.values()), f"must return plain numbers, got {chosen}"
    assert all(np.isfinite(value) for value in chosen.values()), f"must return finite numbers, got {chosen}"


def uniform_counts_keep_predictions(make: Make) -> None:
    """Where all classes are equally frequent there is no long tail to correct."""
    logits, labels = validation()
    correction = make(LongTail([50] * CLASSES))
    correction.fit(logits, labels)
    assert torch.equal(correction(logits).argmax(1), logits.argmax(1)), "predictions change on uniform counts"


CONTRACTS = (
    keeps_shape_and_dtype,
    each_image_is_corrected_by_itself,
    logits_are_left_as_they_are,
    constant_added_to_a_row_does_not_matter,
    finite_at_extreme_logits,
    fit_is_deterministic,
    state_dict_restores_a_blank_correction,
    casts_and_copies_keep_what_was_fitted,
    moves_whole,
    gradient_is_right,
    permutation_equivariant,
    class_without_images_does_no_harm,
    validation_set_is_required_only_if_it_is_said_to_be,
    reports_numbers,
    uniform_counts_keep_predictions,
)

DEFAULTS_ONLY = (uniform_counts_keep_predictions,)
"""Contracts that need not hold under other settings: a target prior may be anything."""


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    return lambda long_tail: entry.make(section_of(entry, **settings), offers(long_tail=long_tail))


@over(catalogue.POST_HOC, CONTRACTS)
def test_every_correction_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.POST_HOC.get(name)
    for settings in variants(entry, lambda entry, settings: maker(entry, settings)(TAIL)):
        if not settings or contract not in DEFAULTS_ONLY:
            with noting(settings):
                contract(maker(entry, settings))


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.POST_HOC if is_ours(entry)])
def test_predictions_change_where_the_paper_says_so(name: str) -> None:
    assert name in CHANGES_PREDICTIONS, f"say in CHANGES_PREDICTIONS whether '{name}' changes predictions"
    logits, _ = validation()
    corrected = fitted(maker(catalogue.POST_HOC.get(name), {}))(logits)
    assert torch.equal(corrected.argmax(1), logits.argmax(1)) is not CHANGES_PREDICTIONS[name]


def test_predictions_are_described_for_corrections_that_exist() -> None:
    assert all(name in catalogue.POST_HOC for name in CHANGES_PREDICTIONS)


# -- corrections that are wrong on purpose ---------------------------------------------------------------------------


class Sound(PostHoc):
    """Half of the log prior subtracted, which breaks no contract."""

    counts: Tensor

    def __init__(self, long_tail: LongTail) -> None:
        super().__init__(long_tail)
        self.register_buffer("counts", torch.as_tensor(long_tail.counts))

    def forward(self, logits: Tensor) -> Tensor:
        return logits - 0.5 * log_prior(self.counts.clamp_min(1), logits)


class ComputesInFloat64(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits.double())


class DividesByTheBatch(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits / logits.std())


class ChangesItsInput(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits.detach().clamp_(-1, 1))


class ReadsAbsoluteLogits(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits) * (logits.amax(1, keepdim=True) > 3).to(logits)


class SoftmaxWithoutItsMaximum(Sound):
    """The exponential overflows."""

    def forward(self, logits: Tensor) -> Tensor:
        corrected = super().forward(logits)
        return corrected - corrected.exp().sum(1, keepdim=True).log()


class FitsUnderNoise(Sound):
    shift: Tensor

    def __init__(self, long_tail: LongTail) -> None:
        super().__init__(long_tail)
        self.register_buffer("shift", torch.zeros(long_tail.num_classes))

    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        self.shift.copy_(torch.randn(len(self.shift)))
        return {}

    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits) + self.shift.to(logits)


class StrengthOutsideItsState(Sound):
    strength = 1.0

    @property
    def needs_validation(self) -> bool:
        return True

    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        self.strength = 2.0
        return {}

    def forward(self, logits: Tensor) -> Tensor:
        return logits - self.strength * log_prior(self.counts.clamp_min(1), logits)


class CountsAsFloats(Sound):
    """Half precision does not hold the largest count."""

    def __init__(self, long_tail: LongTail) -> None:
        super().__init__(long_tail)
        self.register_buffer("counts", torch.as_tensor(long_tail.counts).double())


class TensorStaysOnTheCPU(Sound):
    def __init__(self, long_tail: LongTail) -> None:
        super().__init__(long_tail)
        self.shift = torch.zeros(long_tail.num_classes)

    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits + self.shift.to(logits.dtype))


class CutsTheGradient(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits) - logits.detach().amax(1, keepdim=True)


class FavoursTheLastClass(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits) + torch.arange(logits.shape[1]).to(logits)


class InfiniteForAnEmptyClass(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return logits - 0.0 * log_prior(self.counts, logits)


class NeedsValidationSilently(Sound):
    shift: Tensor

    def __init__(self, long_tail: LongTail) -> None:
        super().__init__(long_tail)
        self.register_buffer("shift", torch.zeros(long_tail.num_classes))

    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        if logits is not None:
            self.shift.copy_(logits.mean(0))
        return {}

    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits) - self.shift.to(logits)


class ReportsATensor(Sound):
    def fit(self, logits: Tensor | None, labels: Tensor | None) -> dict[str, float]:
        return {"tau": torch.ones(())}  # type: ignore[dict-item]


class FlipsPredictions(Sound):
    def forward(self, logits: Tensor) -> Tensor:
        return -super().forward(logits)


BAD: dict[type[Sound], Contract] = {
    ComputesInFloat64: keeps_shape_and_dtype,
    DividesByTheBatch: each_image_is_corrected_by_itself,
    ChangesItsInput: logits_are_left_as_they_are,
    ReadsAbsoluteLogits: constant_added_to_a_row_does_not_matter,
    SoftmaxWithoutItsMaximum: finite_at_extreme_logits,
    FitsUnderNoise: fit_is_deterministic,
    StrengthOutsideItsState: state_dict_restores_a_blank_correction,
    CountsAsFloats: casts_and_copies_keep_what_was_fitted,
    TensorStaysOnTheCPU: moves_whole,
    CutsTheGradient: gradient_is_right,
    FavoursTheLastClass: permutation_equivariant,
    InfiniteForAnEmptyClass: class_without_images_does_no_harm,
    NeedsValidationSilently: validation_set_is_required_only_if_it_is_said_to_be,
    ReportsATensor: reports_numbers,
    FlipsPredictions: uniform_counts_keep_predictions,
}

SUITE = Suite(CONTRACTS, BAD, (Sound,))
