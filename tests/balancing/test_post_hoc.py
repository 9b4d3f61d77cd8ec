"""Each post-hoc correction against its equation in plain loops, and each comparison against doing nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.post_hoc.base import PostHoc
from imbalance_vlm.balancing.post_hoc.logit_adjustment import LogitAdjustment
from imbalance_vlm.balancing.post_hoc.prior_shift import PriorShift, estimate_prior
from imbalance_vlm.balancing.post_hoc.temperature import LIMIT, STEPS, Temperature, nll_slope
from imbalance_vlm.balancing.selection import class_mean_accuracy
from imbalance_vlm.components.settings import checked_settings, settings_of

Floats = NDArray[np.float64]
Make = Callable[[LongTail], PostHoc]

COUNTS = (500, 257, 60, 19, 3)
TAIL = LongTail(COUNTS)
C = len(COUNTS)


def tailed(rows: int = 200, signal: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of a model that leans to the head, and labels (N,) of a balanced validation set; float64."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % C
    logits = rng.normal(0, 1, (rows, C)) + np.log(np.array(COUNTS) / sum(COUNTS))
    logits[np.arange(rows), labels] += signal
    return torch.from_numpy(logits), torch.from_numpy(labels)


class Untouched(PostHoc):
    """Does nothing: what every oracle must tell from the real thing."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


# -- the equations ---------------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [power / sum(powers) for power in powers]


def oracle_logit_adjustment(rows: list[list[float]], tau: float) -> list[list[float]]:
    """p_c / pi_c^tau, to the sum 1."""
    found = []
    for row in rows:
        scores = [p / (n / sum(COUNTS)) ** tau for p, n in zip(softmax(row), COUNTS, strict=True)]
        found.append([score / sum(scores) for score in scores])
    return found


def oracle_prior_shift(
    rows: list[list[float]], target: list[float], source: list[float], strength: float = 1.0
) -> list[list[float]]:
    """p_c (target_c / source_c)^strength, to the sum 1."""
    found = []
    for row in rows:
        scores = [p * (t / s) ** strength for p, t, s in zip(softmax(row), target, source, strict=True)]
        found.append([score / sum(scores) for score in scores])
    return found


def oracle_temperature(rows: list[list[float]], temperature: dict[int, float] | float) -> list[list[float]]:
    """softmax of z / T, with the T of the predicted class where there are several."""
    found = []
    for row in rows:
        predicted = row.index(max(row))
        own = temperature[predicted] if isinstance(temperature, dict) else temperature
        found.append(softmax([z / own for z in row]))
    return found


TRAIN = [n / sum(COUNTS) for n in COUNTS]
UNIFORM = [1 / C] * C
INVERSE = [1 / n for n in COUNTS]
LIST = [5.0, 1.0, 1.0, 2.0, 1.0]

CASES: dict[str, tuple[Make, Callable[[list[list[float]]], list[list[float]]]]] = {
    "logit_adjustment tau 1": (
        lambda tail: LogitAdjustment(tail, tau=1.0),
        lambda rows: oracle_logit_adjustment(rows, 1.0),
    ),
    "logit_adjustment tau .7": (
        lambda tail: LogitAdjustment(tail, tau=0.7),
        lambda rows: oracle_logit_adjustment(rows, 0.7),
    ),
    "prior_shift to uniform": (PriorShift, lambda rows: oracle_prior_shift(rows, UNIFORM, TRAIN)),
    "prior_shift to inverse": (
        lambda tail: PriorShift(tail, target="inverse"),
        lambda rows: oracle_prior_shift(rows, INVERSE, TRAIN),
    ),
    "prior_shift from uniform to train": (
        lambda tail: PriorShift(tail, target="train", source="uniform"),
        lambda rows: oracle_prior_shift(rows, TRAIN, UNIFORM),
    ),
    "prior_shift to a list, strength .4": (
        lambda tail: PriorShift(tail, target=LIST, strength=0.4),
        lambda rows: oracle_prior_shift(rows, LIST, TRAIN, 0.4),
    ),
    "temperature 1.7": (lambda tail: Temperature(tail, T=1.7), lambda rows: oracle_temperature(rows, 1.7)),
}


def assert_follows(make: Make, oracle: Callable[[list[list[float]]], list[list[float]]]) -> None:
    logits, _ = tailed(12)
    got = make(TAIL)(logits).softmax(1)
    np.testing.assert_allclose(got.numpy(), oracle(logits.tolist()), rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_follows_its_equation(case: str) -> None:
    assert_follows(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_rejects_doing_nothing(case: str) -> None:
    with pytest.raises(AssertionError):
        assert_follows(Untouched, CASES[case][1])


def test_adjustment_is_the_shift_from_the_training_prior_to_a_uniform_one() -> None:
    logits, _ = tailed()
    one, other = LogitAdjustment(TAIL, tau=0.6)(logits), PriorShift(TAIL, strength=0.6)(logits)
    torch.testing.assert_close(one.log_softmax(1), other.log_softmax(1))


@pytest.mark.parametrize(
    "made",
    [
        LogitAdjustment(TAIL, tau=0.0),
        PriorShift(TAIL, strength=0.0),
        PriorShift(TAIL, target="train"),
        PriorShift(TAIL, target=[float(n) for n in COUNTS]),
        PriorShift(TAIL, source="uniform"),
        Temperature(TAIL, T=1.0),
        Temperature(TAIL),
    ],
)
def test_where_nothing_is_to_be_corrected_the_probabilities_stay(made: PostHoc) -> None:
    logits, _ = tailed()
    torch.testing.assert_close(made(logits).softmax(1), logits.softmax(1))


# -- choosing on the validation set ----------------------------------------------------------------------------------


def by_hand(logits: Tensor, labels: Tensor, probabilities: Callable[[float], list[list[float]]]) -> float:
    """The candidate of 0, .1, .. 2 of the highest class-mean accuracy, the first of equals, in loops."""
    best, chosen = -1.0, math.nan
    for k in range(21):
        rows = probabilities(k / 10)
        accuracies = []
        for label in range(C):
            own = [row for row, y in zip(rows, labels.tolist(), strict=True) if y == label]
            accuracies.append(sum(row.index(max(row)) == label for row in own) / len(own))
        if sum(accuracies) > best:
            best, chosen = sum(accuracies), k / 10
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_the_strength_left_open_is_the_best_of_the_grid(seed: int) -> None:
    logits, labels = tailed(300, seed=seed)
    rows = logits.tolist()
    adjustment = LogitAdjustment(TAIL)
    assert adjustment.needs_validation
    assert adjustment.fit(logits, labels) == {
        "tau": by_hand(*(logits, labels), lambda t: oracle_logit_adjustment(rows, t))
    }
    assert adjustment.fit(logits, labels)["tau"] > 0
    shift = PriorShift(TAIL, target="inverse", strength=None)
    assert shift.needs_validation
    wanted = by_hand(logits, labels, lambda s: oracle_prior_shift(rows, INVERSE, TRAIN, s))
    assert shift.fit(logits, labels) == {"strength": wanted}
    before = class_mean_accuracy(logits, labels)
    assert class_mean_accuracy(adjustment(logits), labels) > before + 5
    assert class_mean_accuracy(shift(logits), labels) > before + 5


def test_the_smallest_of_equals_is_chosen() -> None:
    logits = torch.full((C, C), -1e4).fill_diagonal_(1e4)  # right whatever is added
    assert LogitAdjustment(TAIL).fit(logits, torch.arange(C)) == {"tau": 0.0}
    assert PriorShift(TAIL, strength=None).fit(logits, torch.arange(C)) == {"strength": 0.0}


def test_what_is_chosen_is_what_is_applied() -> None:
    logits, labels = tailed()
    made = LogitAdjustment(TAIL)
    torch.testing.assert_close(made(logits), LogitAdjustment(TAIL, tau=1.0)(logits))  # before: the paper's
    tau = made.fit(logits, labels)["tau"]
    torch.testing.assert_close(made(logits), LogitAdjustment(TAIL, tau=tau)(logits))


def test_fixed_settings_ask_for_nothing_and_choose_nothing() -> None:
    for made in (
        LogitAdjustment(TAIL, tau=1.0),
        PriorShift(TAIL),
        PriorShift(TAIL, target=LIST),
        Temperature(TAIL, T=2),
    ):
        assert not made.needs_validation
        assert made.fit(None, None) == {}


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (LogitAdjustment(TAIL), "`tau`"),
        (PriorShift(TAIL, strength=None), "`strength`"),
        (PriorShift(TAIL, target="estimate"), "`target`"),
        (Temperature(TAIL), "`T`"),
    ],
)
def test_a_choice_without_a_validation_set_is_refused(made: PostHoc, word: str) -> None:
    assert made.needs_validation
    with pytest.raises(InputError, match=word):
        made.fit(None, None)


# -- the estimate of the target --------------------------------------------------------------------------------------


def oracle_estimate(rows: list[list[float]], source: list[float], iterations: int) -> list[float]:
    """Expectation-maximisation in loops."""
    q = list(source)
    for _ in range(iterations):
        sums = [0.0] * len(q)
        for row in rows:
            scores = [qc / sc * math.exp(lp) for qc, sc, lp in zip(q, source, row, strict=True)]
            for c, score in enumerate(scores):
                sums[c] += score / sum(scores)
        q = [total / len(rows) for total in sums]
    return q


def drawn_from(target: list[float], rows: int = 4000) -> tuple[Tensor, Tensor]:
    """Exact log posteriors under the training prior, of points on a line drawn from `target`, with their labels."""
    rng = np.random.default_rng(1)
    labels = rng.choice(C, rows, p=np.array(target) / sum(target))
    x = 3.0 * labels + rng.normal(0, 1, rows)
    likelihood = -0.5 * (x[:, None] - 3.0 * np.arange(C)) ** 2
    return torch.from_numpy(likelihood + np.log(TRAIN)).log_softmax(1), torch.from_numpy(labels)


@pytest.mark.parametrize("iterations", [1, 7])
def test_the_estimate_follows_its_equation(iterations: int) -> None:
    log_probs = tailed(30)[0].log_softmax(1)
    wanted = oracle_estimate(log_probs.tolist(), TRAIN, iterations)
    got = estimate_prior(log_probs, torch.tensor(TRAIN, dtype=torch.float64), iterations)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10)
    assert not np.allclose(TRAIN, wanted, rtol=1e-2), "the comparison would not see an estimate that stays put"


def test_the_estimate_finds_a_prior_that_the_logits_do_not_carry() -> None:
    target = [0.1, 0.1, 0.2, 0.2, 0.4]
    log_probs, labels = drawn_from(target)
    made = PriorShift(TAIL, target="estimate")
    chosen = made.fit(log_probs, labels)
    np.testing.assert_allclose(made.given.numpy(), target, atol=0.02)
    assert chosen == {"target_lowest": float(made.given.min()), "target_highest": float(made.given.max())}
    before, after = ((logits.argmax(1) == labels).double().mean() for logits in (log_probs, made(log_probs)))
    assert after > before
    unlabelled = PriorShift(TAIL, target="estimate")
    unlabelled.fit(log_probs, None)
    assert torch.equal(unlabelled.given, made.given), "labels must have no part in the estimate"


def test_the_estimate_on_training_shares_moves_little() -> None:
    np.testing.assert_allclose(estimate_prior(drawn_from(TRAIN)[0], torch.tensor(TRAIN).double()), TRAIN, atol=0.02)


def test_the_estimate_survives_a_class_that_is_never_seen() -> None:
    log_probs = drawn_from([0.5, 0.0, 0.2, 0.3, 0.0])[0]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        made = PriorShift(TAIL, target="estimate", iterations=2000)
        made.fit(log_probs.to(dtype), None)
        assert float(made.given[4]) < 1e-3
        assert torch.isfinite(made(log_probs.to(dtype))).all()


def test_an_estimate_from_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one row"):
        estimate_prior(torch.zeros(0, C), torch.tensor(TRAIN))


# -- temperature -----------------------------------------------------------------------------------------------------


def nll(rows: list[list[float]], labels: list[int], temperature: float) -> float:
    total = 0.0
    for row, y in zip(rows, labels, strict=True):
        top = max(row) / temperature
        total += top + math.log(sum(math.exp(z / temperature - top) for z in row)) - row[y] / temperature
    return total / len(rows)


def golden(rows: list[list[float]], labels: list[int]) -> float:
    """T of the smallest mean NLL, by golden-section search on log T."""
    low, high, ratio = -3.0, 3.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if nll(rows, labels, math.exp(left)) < nll(rows, labels, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def assert_finds_the_best(made: Temperature, scale: float) -> None:
    logits, labels = tailed()
    logits = scale * logits
    made.fit(logits, labels)
    wanted = golden(logits.tolist(), labels.tolist())
    rows = oracle_temperature(logits.tolist(), wanted)
    np.testing.assert_allclose(made(logits).softmax(1).numpy(), rows, atol=2e-3)


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_the_temperature_minimises_the_validation_nll(scale: float) -> None:
    made = Temperature(TAIL)
    assert_finds_the_best(made, scale)
    logits, labels = tailed()
    found = made.fit(scale * logits, labels)["temperature"]
    assert found == pytest.approx(golden((scale * logits).tolist(), labels.tolist()), rel=2 / STEPS)
    with pytest.raises(AssertionError):
        assert_finds_the_best(Temperature(TAIL, T=1.0), scale)


def test_the_slope_is_that_of_the_nll() -> None:
    logits, labels = tailed(9)
    for b in (0.3, 1.0, 2.5):
        step = 1e-6
        rows, y = logits.tolist(), labels.tolist()
        wanted = 9 * (nll(rows, y, 1 / (b + step)) - nll(rows, y, 1 / (b - step))) / (2 * step)
        assert nll_slope(logits, labels, 1 / b) == pytest.approx(wanted, rel=1e-6)


def test_the_slope_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nll_slope(*tailed(), 1.3)
    monkeypatch.setattr("imbalance_vlm.balancing.post_hoc.temperature.BLOCK", 7 * C)
    assert nll_slope(*tailed(), 1.3) == pytest.approx(whole, rel=1e-12)


def groupwise(unsure: float = 0.3, sure: float = 8.0) -> tuple[Tensor, Tensor]:
    """Logits too sharp where a head class wins and too flat where a tail class does."""
    logits, labels = tailed(400)
    logits = logits - torch.tensor(TRAIN).log()
    head = torch.isin(logits.argmax(1), torch.as_tensor(TAIL.groups["many"]))
    return torch.where(head[:, None], sure * logits, unsure * logits), labels


def test_by_group_each_has_the_best_of_its_rows() -> None:
    logits, labels = groupwise()
    made = Temperature(TAIL, per_group=True)
    found = made.fit(logits, labels)
    predicted = logits.argmax(1)
    by_class = {}
    for name, members in TAIL.groups.items():
        own = torch.isin(predicted, torch.as_tensor(members))
        wanted = golden(logits[own].tolist(), labels[own].tolist())
        assert found[f"temperature_{name}"] == pytest.approx(wanted, rel=2 / STEPS)
        by_class |= dict.fromkeys(members.tolist(), found[f"temperature_{name}"])
    assert found["temperature_many"] > 2 > 1 > found["temperature_few"]
    np.testing.assert_allclose(made(logits).softmax(1), oracle_temperature(logits.tolist(), by_class), rtol=1e-10)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            Untouched(TAIL)(logits).softmax(1), oracle_temperature(logits.tolist(), by_class), rtol=1e-3
        )
    overall = Temperature(TAIL)
    overall.fit(logits, labels)
    losses = [float(torch.nn.functional.cross_entropy(one(logits), labels)) for one in (made, overall, Untouched(TAIL))]
    assert losses[0] < losses[1] < losses[2]


def test_a_group_that_is_never_predicted_takes_the_overall_temperature() -> None:
    logits, labels = tailed()
    logits = logits - 100 * torch.tensor([0.0, 0, 0, 1, 1])
    keep = labels < 3
    found = Temperature(TAIL, per_group=True).fit(logits[keep], labels[keep])
    assert found["temperature_few"] == Temperature(TAIL).fit(logits[keep], labels[keep])["temperature"]


def test_a_group_without_classes_has_no_temperature() -> None:
    found = Temperature(LongTail([500, 400, 300, 200, 101]), per_group=True).fit(*tailed())
    assert list(found) == ["temperature_many"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
def test_no_prediction_changes(per_group: bool, dtype: torch.dtype) -> None:
    """Not one, also where the best two logits are neighbours in half precision, which a division alone makes equal."""
    logits, labels = groupwise()
    made = Temperature(TAIL, per_group=per_group)
    made.fit(logits, labels)
    for rows in (logits.to(dtype), torch.arange(1, 500)[:, None] / 250.0 + torch.tensor([0.0, 0.0, -9.0, 0.008, 0.0])):
        rows = rows.to(dtype)
        assert torch.equal(made(rows).argmax(1), rows.argmax(1))


def test_separable_data_give_a_temperature_in_bounds() -> None:
    labels = torch.arange(C).repeat(3)
    right = torch.eye(C)[labels]
    lowest, highest = math.exp(-LIMIT / STEPS), math.exp(LIMIT / STEPS)
    for logits in (0.1 * right, right, 1e4 * right, -right, -1e4 * right, torch.zeros_like(right)):
        for per_group in (False, True):
            made = Temperature(TAIL, per_group=per_group)
            for found in made.fit(logits, labels).values():
                assert lowest <= found <= highest
            assert torch.isfinite(made(logits)).all()
    assert Temperature(TAIL).fit(0.1 * right, labels)["temperature"] == pytest.approx(lowest)
    assert Temperature(TAIL).fit(-right, labels)["temperature"] == pytest.approx(highest)
    assert Temperature(TAIL).fit(torch.zeros_like(right), labels)["temperature"] == 1.0


def test_rows_whose_class_is_out_of_play_have_no_say() -> None:
    logits, labels = tailed()
    wanted = Temperature(TAIL).fit(
        logits[labels != 2][:, [0, 1, 3, 4]], torch.tensor([0, 1, 9, 2, 3])[labels[labels != 2]]
    )
    logits[:, 2] = -math.inf
    assert Temperature(TAIL).fit(logits, labels) == wanted


def test_one_temperature_cannot_be_one_for_each_group() -> None:
    with pytest.raises(InputError, match="per_group"):
        Temperature(TAIL, per_group=True, T=1.5)


# -- what all of them keep -------------------------------------------------------------------------------------------

ALL: dict[str, Make] = {
    "logit_adjustment": LogitAdjustment,
    "logit_adjustment fixed": lambda tail: LogitAdjustment(tail, tau=0.7),
    "prior_shift": PriorShift,
    "prior_shift open": lambda tail: PriorShift(tail, target="inverse", strength=None),
    "prior_shift estimate": lambda tail: PriorShift(tail, target="estimate", strength=None),
    "temperature": Temperature,
    "temperature by group": lambda tail: Temperature(tail, per_group=True),
}


def fitted(make: Make, tail: LongTail = TAIL) -> PostHoc:
    made = make(tail)
    made.fit(*tailed())
    return made


@pytest.mark.parametrize("name", ALL)
def test_a_blank_one_and_the_state_give_it_back(name: str) -> None:
    logits, _ = tailed(7)
    made, blank = fitted(ALL[name]), ALL[name](LongTail(COUNTS[::-1]))
    blank.load_state_dict(made.state_dict())
    assert torch.equal(blank(logits), made(logits))


@pytest.mark.parametrize("name", ALL)
def test_any_dtype_comes_out_as_it_went_in(name: str) -> None:
    made = fitted(ALL[name])
    wanted = made(tailed(7)[0]).softmax(1)
    for dtype, tolerance in (
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.bfloat16, 5e-2),
        (torch.float16, 1e-2),
    ):
        got = made(tailed(7)[0].to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.double().softmax(1), wanted, atol=tolerance, rtol=0)
        ALL[name](TAIL).fit(tailed()[0].to(dtype), tailed()[1])


@pytest.mark.parametrize("name", ALL)
def test_casts_and_copies_lose_nothing(name: str) -> None:
    logits, _ = tailed(7)
    made = fitted(ALL[name])
    rounded = {"rtol": 2e-2, "atol": 1e-2} if name == "prior_shift estimate" else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(copy.deepcopy(made)(logits), made(logits))
    for dtype in (torch.bfloat16, torch.float16):
        changed = copy.deepcopy(made).to(dtype).double()
        torch.testing.assert_close(changed(logits), made(logits), **rounded)


@pytest.mark.parametrize("name", ALL)
def test_everything_moves_along(name: str) -> None:
    """The device "meta" holds no numbers: what stays on the CPU cannot meet what is there."""
    assert fitted(ALL[name]).to("meta")(tailed(7)[0].to("meta")).device.type == "meta"


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_passes_through(name: str) -> None:
    made = fitted(ALL[name])
    assert torch.autograd.gradcheck(made, (tailed(4)[0].requires_grad_(),))


@pytest.mark.parametrize("name", ALL)
def test_renumbering_the_classes_changes_nothing(name: str) -> None:
    order = torch.tensor([2, 0, 4, 1, 3])
    logits, labels = tailed()
    made, moved = ALL[name](TAIL), ALL[name](LongTail(np.array(COUNTS)[order]))
    assert moved.fit(logits[:, order], torch.argsort(order)[labels]) == pytest.approx(made.fit(logits, labels))
    torch.testing.assert_close(moved(logits[:, order]), made(logits)[:, order])


@pytest.mark.parametrize("name", ALL)
def test_extreme_logits_stay_finite(name: str) -> None:
    made = fitted(ALL[name])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        rows = torch.where(torch.eye(C, dtype=torch.bool), 1e4, -1e4).to(dtype)
        assert torch.isfinite(made(rows)).all()
        made.fit(rows, torch.arange(C))
        made.fit(-rows, torch.arange(C))
        assert torch.isfinite(made(rows)).all()


@pytest.mark.parametrize("name", ALL)
def test_no_matrix_of_classes_by_classes(name: str, products: list[int]) -> None:
    made = fitted(ALL[name])
    made(tailed(3)[0])
    assert max(products, default=0) <= 200  # the estimate's two products with a vector
    assert all(value.numel() <= C for value in made.state_dict().values())


@pytest.mark.parametrize("name", [name for name in ALL if "temperature" not in name])
def test_a_class_without_images_is_never_predicted_and_changes_nothing_else(name: str) -> None:
    counts = (500, 0, 60, 19, 3)
    others = [0, 2, 3, 4]
    logits, labels = tailed()
    keep = labels != 1
    with_it = ALL[name](LongTail(counts, allow_empty=True))
    chosen = with_it.fit(logits[keep], labels[keep])
    got = with_it(logits)
    assert torch.isneginf(got[:, 1]).all()
    without = ALL[name](LongTail([counts[c] for c in others]))
    wanted = without.fit(logits[keep][:, others], torch.tensor([0, 9, 1, 2, 3])[labels[keep]])
    assert chosen == pytest.approx(wanted)
    torch.testing.assert_close(got[:, others].log_softmax(1), without(logits[:, others]).log_softmax(1))
    (grad,) = torch.autograd.grad(with_it(logits.requires_grad_())[:, others].sum(), logits)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    "made",
    [
        LogitAdjustment(LongTail([9, 0, 2], allow_empty=True), tau=0.0),
        PriorShift(LongTail([9, 0, 2], allow_empty=True), strength=0.0),
        PriorShift(LongTail([9, 0, 2], allow_empty=True), target=[1.0, 8.0, 1.0], source="uniform"),
    ],
)
def test_a_class_without_images_is_out_whatever_the_settings(made: PostHoc) -> None:
    assert torch.isneginf(made(torch.zeros(2, 3)))[:, 1].all()
    assert torch.isfinite(made(torch.zeros(2, 3)))[:, [0, 2]].all()


def test_temperature_leaves_a_class_without_images_where_it_is() -> None:
    """It is calibration: what is predicted stays, also for a zero-shot head that knows classes without images."""
    made = Temperature(LongTail((500, 0, 60, 19, 3), allow_empty=True), per_group=True)
    made.fit(*tailed())
    assert torch.isfinite(made(tailed()[0])).all()


# -- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ([1.0, 2.0], "5 positive numbers, one a class, got 2"),
        ([1.0, 1.0, 0.0, 1.0, 1.0], r"got 0.0 for class 2 \('cup'\)"),
        ([1.0, 1.0, 1.0, -2.0, 1.0], "got -2.0 for class 3"),
        ([math.nan, 1.0, 1.0, 1.0, 1.0], "got nan for class 0"),
        ([math.inf, 1.0, 1.0, 1.0, 1.0], "got inf for class 0"),
        ("test", "'uniform', 'train', 'inverse' or 'estimate', or a list of numbers, got 'test'"),
    ],
)
def test_a_target_that_is_no_prior_is_refused(target: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        PriorShift(LongTail(COUNTS, ("ant", "bee", "cup", "dog", "emu")), target=target)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (LogitAdjustment, {"tau": -0.1}),
        (PriorShift, {"strength": -1}),
        (PriorShift, {"source": "inverse"}),
        (PriorShift, {"target": "even"}),
        (PriorShift, {"iterations": 0}),
        (Temperature, {"T": 0.0}),
        (Temperature, {"temperature": 2.0}),
    ],
)
def test_a_recipe_with_a_setting_out_of_range_is_refused(build: type[PostHoc], settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        checked_settings("post-hoc correction", settings_of(build), settings)


def test_a_recipe_can_set_what_the_settings_say() -> None:
    assert checked_settings("", settings_of(LogitAdjustment), {"tau": None}) == {"tau": None}
    assert checked_settings("", settings_of(PriorShift), {"target": [1, 2.5], "strength": None}) == {
        "target": [1, 2.5],
        "strength": None,
    }
