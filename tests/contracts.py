"""What every loss must do, whatever its formula. `tests/test_contracts.py` runs these over the registry.

A contract takes `make(counts, **settings) -> loss` and raises AssertionError when the loss breaks it. The contracts are
themselves tested there, on losses that are wrong on purpose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail

Make = Callable[..., Loss]
Contract = Callable[[Make], None]

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
    "equalization": "one sigmoid a class instead of a softmax",
    "seesaw": {"p": 0.0, "q": 0.0},
    "gaussian_clouded": {"m": 0.0, "s": 25.0, "head_scale": 25.0},
    "paco": {},
    "gpaco": {},
    "etf_dot_regression": "a squared error of one logit instead of a softmax",
    "sade": "the sum of three experts' cross-entropies",
}
"""For each loss: the settings under which it is cross-entropy on uniform counts, or why there are none."""

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
    """The loss after a training step on this batch, and out of training: what counts has counted, nothing is drawn."""
    loss(logits, targets)
    return loss.eval()


def finite_at_extreme_logits(make: Make) -> None:
    """Loss and gradients are finite at logits of ±1e4, on the hit and on the miss, in float32 and bfloat16."""
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
    """The loss has the dtype of the logits: nothing is promoted behind the user's back."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for reduction in ("batch", "weights", "none"):
            got = make(COUNTS, reduction=reduction)(*batch(dtype=dtype)).dtype
            assert got == dtype, f"logits in {dtype} gave a loss in {got} (reduction '{reduction}')"


def state_dict_round_trip(make: Make) -> None:
    """A loss made with other counts and loaded with this one's state gives this one's values, whatever it has seen."""
    logits, targets = batch()
    loss, other = settled(make(COUNTS), logits, targets), make(COUNTS[::-1]).eval()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(logits, targets), loss(logits, targets)), "the state_dict does not hold all of the state"


def resumes_at_any_epoch(make: Make) -> None:
    """The state_dict and `on_epoch` are all it takes to go on: no epoch has to be lived through again."""
    logits, targets = batch()
    loss, resumed = make(COUNTS), make(COUNTS)
    for epoch in range(3):
        loss.on_epoch(epoch, 4)
        loss(logits, targets)
    resumed.load_state_dict(loss.state_dict())
    for one in (loss, resumed):
        one.on_epoch(3, 4)
    assert torch.equal(resumed(logits, targets), loss(logits, targets)), "a resumed loss differs from one that ran on"


def moves_whole(make: Make) -> None:
    """`.to(device)` takes everything along. The device "meta" holds no numbers: what is left behind on the CPU cannot
    meet what is there, and a value that is fetched does not exist."""
    logits, targets = batch()
    loss = settled(make(COUNTS), logits, targets).to("meta")
    try:
        value = loss(logits.to("meta"), targets.to("meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"the loss does not work on the device it was moved to: {error}") from error
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
        ("int32 targets", logits, targets.int(), "targets"),
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


CONTRACTS: tuple[Contract, ...] = (
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


def refuses(call: Callable[[], object], word: str, what: str = "this") -> None:
    """`call` must raise an InputError whose message holds `word`."""
    raised: Exception | None = None
    try:
        call()
    except Exception as error:
        raised = error
    assert raised is not None, f"{what} must be refused with an InputError"
    assert isinstance(raised, InputError), f"{what} must be an InputError, got {type(raised).__name__}: {raised}"
    assert word in str(raised), f"the error for {what} must name {word!r}, got: {raised}"


@contextmanager
def counting_fetches() -> Iterator[dict[str, int]]:
    """Counts the calls that bring a tensor's value to Python."""
    count = {"fetches": 0}
    names = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
    originals = {name: getattr(Tensor, name) for name in names}
    own = {name for name in names if name in vars(Tensor)}

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(*args: Any, **kwargs: Any) -> Any:
            count["fetches"] += 1
            return original(*args, **kwargs)

        return fetch

    try:
        for name, original in originals.items():
            setattr(Tensor, name, counted(original))
        yield count
    finally:
        for name, original in originals.items():
            if name in own:
                setattr(Tensor, name, original)
            else:
                delattr(Tensor, name)
