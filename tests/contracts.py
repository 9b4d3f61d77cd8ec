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
from torch import Tensor, nn

from imbalance_vlm.errors import InputError
from imbalance_vlm.longtail import LongTail

Make = Callable[..., nn.Module]
Contract = Callable[[Make], None]

COUNTS = (500, 60, 19, 1)

EQUALS_CROSS_ENTROPY: Mapping[str, Mapping[str, Any] | str] = {
    "cross_entropy": {},
    "focal": {"gamma": 0.0},
    "balanced_softmax": {},
    "logit_adjustment": {"tau": 2.0},
}
"""For each loss: the settings under which it is cross-entropy on uniform counts, or why there are none."""


def batch(size: int = 6, num_classes: int = len(COUNTS), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and targets (N,) that hold every class."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(size, num_classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.arange(size) % num_classes


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
        for reduction in ("batch", "none"):
            got = make(COUNTS, reduction=reduction)(*batch(dtype=dtype)).dtype
            assert got == dtype, f"logits in {dtype} gave a loss in {got} (reduction '{reduction}')"


def state_dict_round_trip(make: Make) -> None:
    """A loss made with other counts and loaded with this one's state gives this one's values."""
    logits, targets = batch()
    loss, other = make(COUNTS), make(COUNTS[::-1])
    wanted = loss(logits, targets)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(logits, targets), wanted), "the counts are not in the state_dict"


def survives_casts_and_copies(make: Make) -> None:
    """`.to(dtype)` there and back, `.half()` and deepcopy lose no digit of the counts."""
    logits, targets = batch()
    loss = make((2049, 257, 19, 1))  # bfloat16 rounds 257, float16 rounds 2049
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
        loss = make(COUNTS, reduction=reduction)
        right = torch.autograd.gradcheck(lambda z, f=loss: f(z, targets), (logits,), raise_exception=False)
        assert right, f"the gradient is not that of the value (reduction '{reduction}')"


def permutation_equivariant(make: Make) -> None:
    """Renumbering the classes changes nothing."""
    logits, targets = batch()
    order = torch.tensor([2, 0, 3, 1])
    renumbered = torch.argsort(order)
    moved = make(torch.tensor(COUNTS)[order].tolist())(logits[:, order], renumbered[targets])
    assert torch.allclose(moved, make(COUNTS)(logits, targets)), "the loss depends on how the classes are numbered"


def reduces_to_the_mean(make: Make) -> None:
    """Reduction "none" gives (N,), "batch" its mean over the batch, and is the default."""
    logits, targets = batch()
    values = make(COUNTS, reduction="none")(logits, targets)
    assert values.shape == targets.shape, f"reduction 'none' must give {tuple(targets.shape)}, got {values.shape}"
    for loss in (make(COUNTS, reduction="batch"), make(COUNTS)):
        value = loss(logits, targets)
        assert value.shape == (), f"reduction 'batch' must give a scalar, got {tuple(value.shape)}"
        assert torch.allclose(value, values.mean()), "reduction 'batch' is not the mean of 'none'"
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
    survives_casts_and_copies,
    gradient_is_right,
    permutation_equivariant,
    reduces_to_the_mean,
    refuses_bad_input,
    no_sync_per_sample,
)


def refuses(call: Callable[[], object], word: str, what: str = "this") -> None:
    """`call` must raise an InputError whose message holds `word`."""
    try:
        call()
    except Exception as error:
        assert isinstance(error, InputError), f"{what} must be an InputError, got {type(error).__name__}: {error}"
        assert word in str(error), f"the error for {what} must name {word!r}, got: {error}"
    else:
        raise AssertionError(f"{what} must be refused with an InputError")


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
