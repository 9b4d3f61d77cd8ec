"""PaCo and GPaCo with embeddings: the formula against its oracle, and the queue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.losses.paco import PaCo
from tests import contracts
from tests.balancing.losses import oracles

COUNTS = (120, 45, 20, 7, 3)
WIDTH = 6
NAMES = ("paco", "gpaco")


def make(name: str, counts: Any = COUNTS, **settings: Any) -> PaCo:
    loss = create_loss(name, counts, **{"queue": 16, "reduction": "none", **settings})
    assert isinstance(loss, PaCo)
    return loss


def batch(seed: int, size: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, len(COUNTS), generator=generator, dtype=torch.float64)
    targets = torch.randint(len(COUNTS), (size,), generator=generator)
    embeddings = 4 * torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
    return logits.to(dtype), targets, embeddings.to(dtype)


Key = tuple[list[float], int]


def pairs(embeddings: Tensor, targets: Tensor) -> list[Key]:
    return list(zip(embeddings.tolist(), targets.tolist(), strict=True))


def wanted(name: str, seed: int, size: int, queue: list[Key], **settings: Any) -> list[float]:
    logits, targets, embeddings = batch(seed, size)
    values = []
    for i in range(size):
        batch_keys = pairs(embeddings, targets)
        of_batch = [] if name == "paco" else batch_keys[:i] + batch_keys[i + 1 :]
        values.append(
            oracles.paco(
                logits[i].tolist(), int(targets[i]), COUNTS, query=batch_keys[i][0], keys=queue + of_batch, **settings
            )
        )
    return values


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "paco": [{}, {"alpha": 0.5, "beta": 0.3, "temperature": 0.07, "supt": 2.0}],
    "gpaco": [{}, {"alpha": 0.5, "beta": 0.3, "temperature": 0.07, "supt": 2.0, "label_smoothing": 0.2}],
}


@pytest.mark.parametrize(("name", "settings"), [(name, each) for name in NAMES for each in SETTINGS[name]])
def test_matches_its_equation_while_the_queue_fills_wraps_and_overflows(name: str, settings: dict[str, Any]) -> None:
    """Batches of 6, 6, 6 and 6 into a queue of 16: the third wraps; then one of 20, larger than the queue."""
    loss = make(name, **settings)
    plain = create_loss("balanced_softmax", COUNTS, reduction="none")
    queue: list[Key] = []
    for seed, size in enumerate((6, 6, 6, 6, 20, 6)):
        logits, targets, embeddings = batch(seed, size)
        got = loss(logits, targets, embeddings).tolist()
        np.testing.assert_allclose(got, wanted(name, seed, size, queue, **settings), rtol=1e-10)
        if queue:
            assert not np.allclose(got, plain(logits, targets).tolist())
            assert not np.allclose(got, loss(logits, targets).tolist()), "the parametric part alone"
        queue = (queue + pairs(embeddings, targets))[-16:]
    assert int((loss.key_labels >= 0).sum()) == 16


def test_gpaco_adds_the_keys_of_the_batch_and_their_gradient() -> None:
    logits, targets, embeddings = batch(1)
    embeddings.requires_grad_()
    for name, reach in (("paco", False), ("gpaco", True)):
        loss = make(name)
        loss(*batch(0))
        value = loss(logits, targets, embeddings)[0]  # of the first sample
        (grad,) = torch.autograd.grad(value, embeddings)
        assert grad[0].abs().sum() > 0
        assert bool(grad[1:].abs().sum() > 0) is reach


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_right(name: str) -> None:
    """In float64 against differences, through logits and embeddings, with a queue that is partly filled."""
    loss = make(name, alpha=0.4)
    loss(*batch(0))
    loss.eval()
    logits, targets, embeddings = batch(1)
    inputs = logits.requires_grad_(), embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, h: loss(z, targets, h), inputs)


@pytest.mark.parametrize("name", NAMES)
def test_backward_pass_is_unaffected_by_the_enqueueing(name: str) -> None:
    """The queue changes between forward and backward; the gradient is that of the queue as it was."""
    loss, frozen = make(name), make(name)
    for each in (loss, frozen):
        each(*batch(0, 14))
    frozen.eval()
    grads = []
    for each in (loss, frozen):
        logits, targets, embeddings = batch(1)
        each(logits, targets, embeddings.requires_grad_()).sum().backward()
        assert embeddings.grad is not None
        grads.append(embeddings.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", NAMES)
def test_queue_is_unchanged_in_evaluation_mode(name: str) -> None:
    loss = make(name).eval()
    loss(*batch(0))
    assert loss.keys.shape == (0, 0)
    loss.train()(*batch(0))
    before = loss.keys.clone()
    loss.eval()(*batch(1))
    assert torch.equal(loss.keys, before)
    assert not loss.keys.requires_grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batches", [0, 1, 4])
def test_resumed_queue_gives_the_values_of_an_uninterrupted_one(name: str, batches: int) -> None:
    """A fresh module does not know the width of the embeddings; the state_dict brings it."""
    loss, resumed = make(name), make(name)
    for seed in range(batches):
        loss(*batch(seed))
    resumed.load_state_dict(loss.state_dict())
    for seed in range(7, 11):
        assert torch.equal(resumed(*batch(seed)), loss(*batch(seed)))
    assert torch.equal(resumed.keys, loss.keys)
    resumed.load_state_dict(make(name).state_dict())  # and back to an empty one
    assert torch.equal(resumed(*batch(3)), make(name)(*batch(3)))


def test_a_queue_of_another_size_is_not_loaded() -> None:
    loss = make("paco")
    loss(*batch(0))
    with pytest.raises(RuntimeError, match="key_labels"):
        make("paco", queue=8).load_state_dict(loss.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_queue_moves_and_is_cast_with_the_module(name: str) -> None:
    loss = make(name)
    loss(*batch(0))
    loss.to("meta")
    logits, targets, embeddings = batch(1)
    assert loss(logits.to("meta"), targets.to("meta"), embeddings.to("meta")).device.type == "meta"
    assert loss.keys.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_stays_near_and_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    loss, exact = make(name), make(name)
    for seed in range(3):
        got, wide = loss(*batch(seed, dtype=dtype)), exact(*batch(seed))
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wide, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_extremes_are_finite(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        loss = make(name, temperature=0.01)
        for scale in (1e4, 1e-30, 0.0):
            logits = (1e4 * torch.tensor([[1.0, -1, -1, 1, -1], [-1, 1, 1, -1, -1]])).to(dtype).requires_grad_()
            embeddings = (scale * torch.ones(2, WIDTH)).to(dtype).requires_grad_()
            for size in (2, 1):  # a batch of one has no other sample in it
                values = loss(logits[:size], torch.tensor([3, 4])[:size], embeddings[:size])
                grads = torch.autograd.grad(values.sum(), (logits, embeddings), materialize_grads=True)
                assert all(torch.isfinite(each).all() for each in (values, *grads))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_class_takes_no_part(name: str) -> None:
    """With a queue, the value is that of the same problem without the class."""
    settings = {"label_smoothing": 0.2} if name == "gpaco" else {}
    loss = make(name, LongTail([30, 0, 4], allow_empty=True), **settings)
    without = make(name, [30, 4], **settings)
    for _ in range(2):
        logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        embeddings = torch.randn(4, WIDTH, dtype=torch.float64)
        targets = torch.tensor([0, 2, 2, 0])
        values = loss(logits, targets, embeddings)
        torch.testing.assert_close(values, without(logits[:, [0, 2]], targets // 2, embeddings))
        (grad,) = torch.autograd.grad(values.sum(), logits)
        assert torch.all(grad[:, 1] == 0)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched_from_the_device_by_the_queue(name: str) -> None:
    loss = make(name)
    fetched = []
    for seed, size in enumerate((2, 12, 12, 40)):
        with contracts.counting_fetches() as count:
            loss(*batch(seed, size))
        fetched.append(count["fetches"])
    assert len(set(fetched)) == 1


def test_embeddings_that_do_not_fit_are_refused_in_words() -> None:
    loss = make("paco")
    logits, targets, embeddings = batch(0)
    with pytest.raises(InputError, match=r"`embeddings` must be \(6, d\), one row per sample, got \(5, 6\)"):
        loss(logits, targets, embeddings[:5])
    loss(logits, targets, embeddings)
    with pytest.raises(InputError, match=r"`embeddings` must be \(6, 6\), one row per sample, got \(6, 4\)"):
        loss(logits, targets, embeddings[:, :4])


@pytest.mark.parametrize(("setting", "value"), [("queue", 0), ("temperature", 0.0), ("beta", 0.0), ("alpha", -1.0)])
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"`{setting}` must be"):
        make("paco", **{setting: value})
