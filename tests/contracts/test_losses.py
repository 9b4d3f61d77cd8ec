"""What every loss must do, whatever its formula.

A contract takes `make(counts, **settings) -> loss`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.components import catalogue
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.long_tail import LongTail
from tests.contracts import (
    Contract,
    Suite,
    counting_fetches,
    is_ours,
    offers,
    on_another_device,
    over,
    refuses,
    section_of,
)

Make = Callable[..., Loss]

COUNTS = (500, 60, 19, 1)

EQUALS_CROSS_ENTROPY: Mapping[str, Mapping[str, Any] | str] = {
    "cross_entropy": {},
    "focal": {"gamma": 0.0},
    "balanced_softmax": {},
    "logit_adjustment": {"tau": 2.0},
    "weighted": {"rho": 2.0},
    "class_balanced": {},
    "ldam": {"max_m": 0.0, "s": 25.0, "head_scale": 25.0},
    "vs": {"gamma": 1.0, "tau": 2.0},
    "lade": {"alpha": 0.0},
    "equalization": "one sigmoid per class instead of a softmax",
    "seesaw": {"p": 0.0, "q": 0.0},
    "gaussian_clouded": {"m": 0.0, "s": 25.0, "head_scale": 25.0},
    "paco": {},
    "gpaco": {},
    "etf_dot_regression": "a squared error of one logit instead of a softmax",
    "sade": "the sum of three experts' cross-entropies",
}
"""For each loss of the package: settings under which it is cross-entropy on uniform counts, or why there are none."""

SETTINGS_FOR: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("seesaw", "gradient_is_right"): {"q": 0.0},  # the factor S goes without gradient, which is the method
}
"""(loss, contract): settings under which the contract can hold, where the defaults cannot."""


def batch(size: int = 6, num_classes: int = len(COUNTS), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and targets (N,) that hold every class."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(size, num_classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.arange(size) % num_classes


def settled(loss: Loss, logits: Tensor, targets: Tensor) -> Loss:
    """The loss in evaluation mode after a training step on this batch: with counts, and without random numbers."""
    loss(logits, targets)
    return loss.eval()


def finite_at_extreme_logits(make: Make) -> None:
    """Loss and gradients are finite at logits of ±1e4, for the true class and for others, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        signs = torch.tensor([[1.0, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, -1, 1], [1, 1, 1, 1], [-1, -1, -1, -1]])
        for target in range(len(COUNTS)):
            logits = (1e4 * signs).to(dtype).requires_grad_()
            value = make(COUNTS)(logits, torch.full((len(signs),), target))
            (grad,) = torch.autograd.grad(value, logits)
            assert torch.isfinite(value), f"loss is {value.item()} at logits of ±1e4 in {dtype}, target {target}"
            assert torch.isfinite(grad).all(), f"gradient is not finite at logits of ±1e4 in {dtype}, target {target}"


def empty_class(make: Make) -> None:
    """A class without images is refused by name; with allow_empty the other classes' loss is finite."""
    counts = (30, 0, 4, 2)
    refuses(lambda: make(LongTail(counts, ("cat", "lynx", "dog", "emu"))), "lynx")
    loss = make(LongTail(counts, allow_empty=True))
    logits, targets = batch()
    logits.requires_grad_()
    keep = targets != 1
    value = loss(logits[keep], targets[keep])
    (grad,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value), f"allow_empty: the loss of the other classes is {value.item()}"
    assert torch.isfinite(grad).all(), "allow_empty: the gradient is not finite"


def keeps_dtype(make: Make) -> None:
    """The loss has the dtype of the logits."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for reduction in ("batch", "weights", "none"):
            got = make(COUNTS, reduction=reduction)(*batch(dtype=dtype)).dtype
            assert got == dtype, f"logits in {dtype} gave a loss in {got} (reduction '{reduction}')"


def state_dict_round_trip(make: Make) -> None:
    """A loss made with other counts gives this one's values once it has loaded this one's state."""
    logits, targets = batch()
    loss, other = settled(make(COUNTS), logits, targets), make(COUNTS[::-1]).eval()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(logits, targets), loss(logits, targets)), "the state_dict does not hold all of the state"


def resumes_at_any_epoch(make: Make) -> None:
    """The state_dict and `on_epoch` suffice to resume: no earlier epoch has to be repeated."""
    logits, targets = batch()
    loss, resumed = make(COUNTS), make(COUNTS)
    for epoch in range(3):
        loss.on_epoch(epoch, 4)
        loss(logits, targets)
    resumed.load_state_dict(loss.state_dict())
    loss.on_epoch(3, 4)
    resumed.on_epoch(3, 4)
    assert torch.equal(resumed(logits, targets), loss(logits, targets)), "a resumed loss differs from one that ran on"


def moves_whole(make: Make) -> None:
    """`.to(device)` moves every tensor."""
    logits, targets = batch()
    loss = settled(make(COUNTS), logits, targets).to("meta")
    with on_another_device("the loss"):
        value = loss(logits.to("meta"), targets.to("meta"))
    assert value.device.type == "meta", f"the value stayed on {value.device}"


def survives_casts_and_copies(make: Make) -> None:
    """`.to(dtype)` there and back, `.half()` and deepcopy lose no digit of the counts."""
    logits, targets = batch()
    loss = settled(make((2049, 257, 19, 1)), logits, targets)  # bfloat16 rounds 257, float16 rounds 2049
    wanted = loss(logits, targets)
    for name, changed in {
        "deepcopy": copy.deepcopy(loss),
        ".to(bfloat16).to(float64)": copy.deepcopy(loss).to(torch.bfloat16).to(torch.float64),
        ".half().float()": copy.deepcopy(loss).half().float(),
    }.items():
        assert torch.allclose(changed(logits, targets), wanted, rtol=1e-12), f"{name} changed the loss"


def gradient_is_right(make: Make) -> None:
    """torch.autograd.gradcheck in float64, for both reductions."""
    logits, targets = batch()
    logits.requires_grad_()
    for reduction in ("batch", "none"):
        loss = settled(make(COUNTS, reduction=reduction), logits, targets)
        right = torch.autograd.gradcheck(lambda z, f=loss: f(z, targets), (logits,), raise_exception=False)
        assert right, f"the gradient is not that of the value (reduction '{reduction}')"


def permutation_equivariant(make: Make) -> None:
    """Renumbering the classes changes nothing."""
    logits, targets = batch()
    order = torch.tensor([2, 0, 3, 1])
    renumbered = torch.argsort(order)
    moved, where = make(torch.tensor(COUNTS)[order].tolist()), (logits[:, order], renumbered[targets])
    wanted = settled(make(COUNTS), logits, targets)(logits, targets)
    assert torch.allclose(settled(moved, *where)(*where), wanted), "the loss depends on how the classes are numbered"


def reduces_to_the_mean(make: Make) -> None:
    """Reduction "none" gives (N,), "batch" its mean over the batch, and is the default; "weights" is the same where all
    classes weigh the same."""
    logits, targets = batch()
    values = make(COUNTS, reduction="none")(logits, targets)
    assert values.shape == targets.shape, f"reduction 'none' must give {tuple(targets.shape)}, got {values.shape}"
    for loss in (make(COUNTS, reduction="batch"), make(COUNTS)):
        value = loss(logits, targets)
        assert value.shape == (), f"reduction 'batch' must give a scalar, got {tuple(value.shape)}"
        assert torch.allclose(value, values.mean()), "reduction 'batch' is not the mean of 'none'"
    values, value = (make((9, 9, 9, 9), reduction=how)(logits, targets) for how in ("none", "weights"))
    assert value.shape == (), f"reduction 'weights' must give a scalar, got {tuple(value.shape)}"
    assert torch.allclose(value, values.mean()), "reduction 'weights' is not the mean on uniform counts"
    refuses(lambda: make(COUNTS, reduction="sum"), "reduction")


def refuses_bad_input(make: Make) -> None:
    """Targets out of range, wrong shapes, wrong dtypes and empty batches are InputErrors that name the argument."""
    loss, (logits, targets) = make(COUNTS), batch()
    for what, z, y, word in (
        ("a target of -1", logits, targets - 1, "targets"),
        ("a target of C", logits, targets + 1, "targets"),
        ("too many columns", torch.cat([logits, logits], 1), targets, "logits"),
        ("logits of one dimension", logits[0], targets, "logits"),
        ("integer logits", logits.long(), targets, "logits"),
        ("too few targets", logits, targets[:-1], "targets"),
        ("targets of two dimensions", logits, targets[:, None], "targets"),
        ("float targets", logits, targets.double(), "targets"),
        ("boolean targets", logits, targets.bool(), "targets"),
        ("an empty batch", logits[:0], targets[:0], "empty"),
    ):
        refuses(lambda z=z, y=y: loss(z, y), word, what)


def no_sync_per_sample(make: Make) -> None:
    """The number of values fetched from tensors does not grow with the batch: on a GPU each one stalls the step."""
    loss = make(COUNTS)
    fetched = {}
    for size in (4, 64):
        logits, targets = batch(size, dtype=torch.float32)
        with counting_fetches() as count:
            loss(logits.requires_grad_(), targets).backward()
        fetched[size] = count["fetches"]
    assert fetched[4] == fetched[64], f"values fetched from tensors by batch size: {fetched}"


CONTRACTS = (
    finite_at_extreme_logits,
    empty_class,
    keeps_dtype,
    state_dict_round_trip,
    resumes_at_any_epoch,
    moves_whole,
    survives_casts_and_copies,
    gradient_is_right,
    permutation_equivariant,
    reduces_to_the_mean,
    refuses_bad_input,
    no_sync_per_sample,
)


def maker(name: str) -> Make:
    """The loss as a run on a head with scaled cosines makes it."""

    def make(counts: Any, **settings: Any) -> Loss:
        long_tail, head = LongTail.of(counts), LinearHead(6, len(COUNTS))
        run = offers(long_tail=long_tail, num_classes=long_tail.num_classes, head=head, logit_scale=25.0)
        loss: Loss = catalogue.LOSSES.make(section_of(catalogue.LOSSES.get(name), **settings), run)
        return loss

    return make


@over(catalogue.LOSSES, CONTRACTS)
def test_every_loss_keeps_every_contract(name: str, contract: Contract) -> None:
    extra = SETTINGS_FOR.get((name, contract.__name__), {})
    contract(lambda counts, **settings: maker(name)(counts, **extra | settings))


def test_settings_for_contracts_are_of_losses_and_contracts_that_exist() -> None:
    names = {contract.__name__ for contract in CONTRACTS}
    assert all(loss in catalogue.LOSSES and contract in names for loss, contract in SETTINGS_FOR)


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.LOSSES if is_ours(entry)])
def test_equals_cross_entropy_on_uniform_counts_where_the_paper_says_so(name: str) -> None:
    assert name in EQUALS_CROSS_ENTROPY, (
        f"add a line for '{name}' to EQUALS_CROSS_ENTROPY in tests/contracts/test_losses.py: the settings under which "
        "it equals cross-entropy on uniform counts, or a sentence that says why it never does"
    )
    settings = EQUALS_CROSS_ENTROPY[name]
    if isinstance(settings, str):
        pytest.skip(settings)
    logits, targets = batch()
    values = maker(name)([25] * 4, reduction="none", **settings)(logits, targets)
    torch.testing.assert_close(values, F.cross_entropy(logits, targets, reduction="none"))


def test_settings_on_uniform_counts_are_of_losses_that_exist() -> None:
    assert all(name in catalogue.LOSSES for name in EQUALS_CROSS_ENTROPY)


# -- losses that are wrong on purpose --------------------------------------------------------------------------------


class Sound(Loss):
    """Cross-entropy, which breaks no contract."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")


class SumsTheBatch(Sound):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        values = super().forward(logits, targets)
        return values.sum() * len(targets) if self.reduction == "batch" else values


class CountsAsAttribute(Sound):
    """Counts that are not a buffer, so that they are neither saved nor moved."""

    def __init__(self, long_tail: LongTail, **settings: Any) -> None:
        super().__init__(long_tail, **settings)
        self.log_prior = torch.as_tensor(long_tail.counts / long_tail.counts.sum()).log()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + self.log_prior.to(logits), targets)


class CountsAsFloats(Sound):
    """Counts in a floating-point buffer: half precision rounds them."""

    def __init__(self, long_tail: LongTail, **settings: Any) -> None:
        super().__init__(long_tail, **settings)
        self.register_buffer("weights", torch.as_tensor(long_tail.counts, dtype=torch.float32))

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + self.weights.log().to(logits), targets)


class CountsOutsideItsState(Sound):
    """A running count that is not a buffer."""

    seen = 0

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.seen += len(targets) if self.training else 0
        return super().per_sample(logits, targets) * (1 + self.seen)


class CountsItsEpochs(Sound):
    """Its state depends on how often `on_epoch` was called, not on the arguments."""

    calls = 0

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.calls += 1

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits, targets) * (1 + self.calls)


class TensorStaysOnTheCPU(Sound):
    """A tensor that is not a buffer."""

    def __init__(self, long_tail: LongTail, **settings: Any) -> None:
        super().__init__(long_tail, **settings)
        self.log_prior = torch.as_tensor(long_tail.counts / long_tail.counts.sum()).log()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + self.log_prior, targets)


class FavoursTheLastClass(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits, targets) * (1 + (targets == logits.shape[1] - 1))


class Overflows(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
        return -probabilities.gather(1, targets[:, None]).squeeze(1).log()


class NaNForAnEmptyClass(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + 0.0 * self.counts.to(logits).log(), targets)


class Promotes(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits.double(), targets)


class CutsTheGradient(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits, targets) * (1 + logits.detach().square().mean(1))


class ChecksNothing(Sound):
    def _checked(self, logits: Tensor, targets: Any) -> Tensor:
        return targets


class FetchesEachSample(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        values = super().per_sample(logits, targets)
        return torch.stack([value if value.item() >= 0 else -value for value in values])


BAD: dict[type[Loss], Contract] = {
    SumsTheBatch: reduces_to_the_mean,
    CountsAsAttribute: state_dict_round_trip,
    CountsOutsideItsState: state_dict_round_trip,
    CountsItsEpochs: resumes_at_any_epoch,
    TensorStaysOnTheCPU: moves_whole,
    CountsAsFloats: survives_casts_and_copies,
    FavoursTheLastClass: permutation_equivariant,
    Overflows: finite_at_extreme_logits,
    NaNForAnEmptyClass: empty_class,
    Promotes: keeps_dtype,
    CutsTheGradient: gradient_is_right,
    ChecksNothing: refuses_bad_input,
    FetchesEachSample: no_sync_per_sample,
}


def of(build: Callable[..., Loss]) -> Make:
    return lambda counts, **settings: build(LongTail.of(counts), **settings)


SUITE = Suite(CONTRACTS, BAD, (Sound,), of)
