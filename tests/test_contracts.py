"""The contracts over everything registered, and the contracts themselves on losses that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.components import catalogue
from imbalance_vlm.long_tail import LongTail
from tests import contracts
from tests.contracts import CONTRACTS, EQUALS_CROSS_ENTROPY, SETTINGS_FOR, Contract, Make

LOSSES = catalogue.LOSSES.names()


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_keeps_every_contract(name: str, contract: Contract) -> None:
    here = SETTINGS_FOR.get((name, contract.__name__), {})
    contract(lambda counts, **settings: create_loss(name, counts, **{**here, **settings}))


def test_the_table_of_settings_names_no_loss_or_contract_that_is_gone() -> None:
    contracts_there = {contract.__name__ for contract in CONTRACTS}
    assert all(name in LOSSES and contract in contracts_there for name, contract in SETTINGS_FOR)


@pytest.mark.parametrize("name", LOSSES)
def test_equals_cross_entropy_on_uniform_counts_where_the_paper_says_so(name: str) -> None:
    assert name in EQUALS_CROSS_ENTROPY, (
        f"add a line for '{name}' to EQUALS_CROSS_ENTROPY in tests/contracts.py: the settings under which it equals "
        "cross-entropy on uniform counts, or a sentence that says why it never does"
    )
    settings = EQUALS_CROSS_ENTROPY[name]
    if isinstance(settings, str):
        pytest.skip(settings)
    logits, targets = contracts.batch()
    values = create_loss(name, [25] * 4, reduction="none", **settings)(logits, targets)
    torch.testing.assert_close(values, F.cross_entropy(logits, targets, reduction="none"))


def test_the_table_of_uniform_counts_names_no_loss_that_is_gone() -> None:
    assert set(EQUALS_CROSS_ENTROPY) <= set(LOSSES)


# -- losses that are wrong on purpose --------------------------------------------------------------------------------


class Sound(Loss):
    """Nothing wrong: no contract may complain."""

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")


class SumsTheBatch(Sound):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        values = super().forward(logits, targets)
        return values.sum() * len(targets) if self.reduction == "batch" else values


class CountsAsAttribute(Sound):
    """Counts that are no buffer: neither saved nor moved."""

    def __init__(self, long_tail: LongTail, **settings: Any) -> None:
        super().__init__(long_tail, **settings)
        self.log_prior = torch.as_tensor(long_tail.log_prior)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + self.log_prior.to(logits), targets)


class CountsAsFloats(Sound):
    """Counts in a floating-point buffer: half precision rounds them."""

    def __init__(self, long_tail: LongTail, **settings: Any) -> None:
        super().__init__(long_tail, **settings)
        self.register_buffer("weights", torch.as_tensor(long_tail.counts, dtype=torch.float32))

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + self.weights.log().to(logits), targets)


class ForgetsWhatItSaw(Sound):
    """A running count that is no buffer."""

    seen = 0

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.seen += len(targets) if self.training else 0
        return super().per_sample(logits, targets) * (1 + self.seen)


class CountsItsEpochs(Sound):
    """Where training stands, from how often it was told rather than from what."""

    told = 0

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.told += 1

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits, targets) * (1 + self.told)


class StaysBehind(Sound):
    """A tensor that is no buffer."""

    def __init__(self, long_tail: LongTail, **settings: Any) -> None:
        super().__init__(long_tail, **settings)
        self.log_prior = torch.as_tensor(long_tail.log_prior)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits + self.log_prior, targets)


class KnowsTheLastClass(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().per_sample(logits, targets) * (1 + (targets == logits.shape[1] - 1))


class Overflows(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        shares = logits.exp() / logits.exp().sum(1, keepdim=True)
        return -shares.gather(1, targets[:, None]).squeeze(1).log()


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
    def _check(self, logits: Tensor, targets: Tensor) -> None:
        pass


class AsksForEachSample(Sound):
    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        values = super().per_sample(logits, targets)
        return torch.stack([value if value.item() >= 0 else -value for value in values])


BAD: dict[type[Loss], Contract] = {
    SumsTheBatch: contracts.reduces_to_the_mean,
    CountsAsAttribute: contracts.state_dict_round_trip,
    ForgetsWhatItSaw: contracts.state_dict_round_trip,
    CountsItsEpochs: contracts.resumes_at_any_epoch,
    StaysBehind: contracts.moves_whole,
    CountsAsFloats: contracts.survives_casts_and_copies,
    KnowsTheLastClass: contracts.permutation_equivariant,
    Overflows: contracts.finite_at_extreme_logits,
    NaNForAnEmptyClass: contracts.empty_class,
    Promotes: contracts.keeps_dtype,
    CutsTheGradient: contracts.gradient_is_right,
    ChecksNothing: contracts.refuses_bad_input,
    AsksForEachSample: contracts.no_sync_per_sample,
}


def of(loss: Callable[..., Loss]) -> Make:
    return lambda counts, **settings: loss(LongTail.of(counts), **settings)


@pytest.mark.parametrize(("loss", "contract"), BAD.items(), ids=[loss.__name__ for loss in BAD])
def test_a_bad_loss_is_caught(loss: type[Loss], contract: Contract) -> None:
    with pytest.raises(AssertionError):
        contract(of(loss))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_a_sound_loss_is_not(contract: Contract) -> None:
    contract(of(Sound))


def test_every_contract_is_seen_to_fail() -> None:
    assert set(BAD.values()) == set(CONTRACTS)
