"""What every second stage must do.

A contract takes a `Case`: how to make the stage without content, and the head that it corrects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.experts import ExpertsHead
from imbalance_vlm.heads.linear import LinearHead
from tests.balancing.second_stages.problem import WIDTH, draws, stage_on
from tests.contracts import (
    Contract,
    Suite,
    close,
    noting,
    offers,
    on_another_device,
    over,
    refuses,
    section_of,
    variants,
)

COUNTS = (40, 15, 6, 3)
CLASSES = len(COUNTS)
EMBEDDINGS = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Case:
    """Makers of a second stage without content and of a trained head: `head(bias)`."""

    blank: Callable[[], SecondStage]
    head: Callable[[bool], Head]


def stage(case: Case, counts: Sequence[int] = COUNTS, *, bias: bool = True, validation: bool = True) -> Stage:
    head = case.head(bias)
    views = tuple(torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (8, 9))
    held_out = draws([8 if count else 0 for count in counts], seed=1) if validation else None
    return dataclasses.replace(stage_on(draws(counts, seed=0), head, held_out), test_views=lambda: (views[0], views[1]))


def fitted(case: Case, on: Stage | None = None, seed: int = 0) -> SecondStage:
    second = case.blank()
    torch.manual_seed(seed)
    second.fit(on or stage(case))
    return second


def gives_one_finite_logit_per_class(case: Case) -> None:
    """For usual embeddings, and for those that are all zero, tiny or large."""
    second = fitted(case)
    for name, embeddings in {
        "usual": EMBEDDINGS,
        "zero": torch.zeros_like(EMBEDDINGS),
        "tiny": 1e-6 * EMBEDDINGS,
        "large": 1e4 * EMBEDDINGS,
    }.items():
        logits = second(embeddings)
        wanted = (len(EMBEDDINGS), CLASSES)
        assert logits.shape == wanted, f"logits must be {wanted}, got {tuple(logits.shape)}"
        assert torch.isfinite(logits).all(), f"logits of {name} embeddings are not finite"


def each_image_is_classified_by_itself(case: Case) -> None:
    """Neither the order of a batch nor its other images matter; a batch of one is a batch."""
    second = fitted(case)
    logits = second(EMBEDDINGS)
    assert close(second(EMBEDDINGS.flip(0)), logits.flip(0)), "the order of the batch matters"
    assert close(second(EMBEDDINGS[:1]), logits[:1]), "an image alone gets other logits than in a batch"


def fit_depends_on_the_seed_only(case: Case) -> None:
    """A second `fit`, of a new stage or of the same, gives the same."""
    second = fitted(case)
    wanted = second(EMBEDDINGS)
    assert torch.equal(fitted(case)(EMBEDDINGS), wanted), "two fits under one seed differ"
    torch.manual_seed(0)
    second.fit(stage(case))
    assert torch.equal(second(EMBEDDINGS), wanted), "a repeated fit differs from the first"


def state_dict_restores_a_blank_stage(case: Case) -> None:
    second, blank = fitted(case), case.blank()
    blank.load_state_dict(second.state_dict())
    assert torch.equal(blank(EMBEDDINGS), second(EMBEDDINGS)), "the state_dict does not hold all that was learned"


def moves_and_casts_whole(case: Case) -> None:
    second = fitted(case)
    wanted = second(EMBEDDINGS)
    got = second.double()(EMBEDDINGS.double())
    assert got.dtype == torch.float64, f"logits of float64 embeddings are {got.dtype}"
    assert close(got.float(), wanted, 1e-4), "logits in float64 differ"
    with on_another_device("the second stage"):
        moved = second.to("meta")(EMBEDDINGS.double().to("meta"))
    assert moved.device.type == "meta", f"the logits stayed on {moved.device}"


def class_without_images_does_no_harm(case: Case) -> None:
    logits = fitted(case, stage(case, (20, 0, 6, 3)))(EMBEDDINGS)
    assert torch.isfinite(logits[:, [0, 2, 3]]).all(), "a class without images spoils the logits of the others"
    assert not torch.isnan(logits).any(), "the logit of a class without images is not a number"


def head_without_bias_is_accepted(case: Case) -> None:
    logits = fitted(case, stage(case, bias=False))(EMBEDDINGS)
    assert torch.isfinite(logits).all(), "logits are not finite after a head without bias"


def head_is_left_as_it_is(case: Case) -> None:
    """The first stage is kept in the run's files: fitting the second must not change it."""
    on = stage(case)
    before = {key: value.clone() for key, value in on.head.state_dict().items()}
    second = fitted(case, on)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
        for buffer in second.buffers():
            buffer.zero_()
    changed = [key for key, value in on.head.state_dict().items() if not torch.equal(value, before[key])]
    assert not changed, f"the second stage changes or shares {', '.join(changed)} of the head"


def validation_set_is_required_only_if_it_is_said_to_be(case: Case) -> None:
    second, on = case.blank(), stage(case, validation=False)
    if second.needs_validation:
        refuses(lambda: second.fit(on), "validation", "a choice without a validation set")
    else:
        torch.manual_seed(0)
        second.fit(on)
        assert torch.equal(second(EMBEDDINGS), fitted(case)(EMBEDDINGS)), "the validation set changes the result"


def reports_numbers(case: Case) -> None:
    """What `fit` returns is written to the run's result: finite numbers by name."""
    second = case.blank()
    torch.manual_seed(0)
    chosen = second.fit(stage(case))
    assert isinstance(chosen, dict), f"`fit` must return a dict, got {type(chosen).__name__}"
    assert all(type(value) in (float, int) for value in chosen.values()), f"must return plain numbers, got {chosen}"
    assert all(np.isfinite(value) for value in chosen.values()), f"must return finite numbers, got {chosen}"


CONTRACTS = (
    gives_one_finite_logit_per_class,
    each_image_is_classified_by_itself,
    fit_depends_on_the_seed_only,
    state_dict_restores_a_blank_stage,
    moves_and_casts_whole,
    class_without_images_does_no_harm,
    head_without_bias_is_accepted,
    head_is_left_as_it_is,
    validation_set_is_required_only_if_it_is_said_to_be,
    reports_numbers,
)


def linear_head(bias: bool) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return LinearHead(WIDTH, CLASSES, bias=bias, normalise=False)


def experts_head(bias: bool) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return ExpertsHead(WIDTH, CLASSES, normalise=False)


def case_of(entry: Entry, settings: Mapping[str, Any]) -> Case:
    section = section_of(entry, **settings)
    if "epochs" in entry.settings():
        section = {"epochs": 2, **section}
    run = offers(width=WIDTH, num_classes=CLASSES)
    return Case(lambda: entry.make(section, run), experts_head if "experts" in entry.needed(section) else linear_head)


def is_possible(entry: Entry, settings: Mapping[str, Any]) -> bool:
    fitted(case_of(entry, settings))
    return True


@over(catalogue.SECOND_STAGES, CONTRACTS)
def test_every_second_stage_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.SECOND_STAGES.get(name)
    for settings in variants(entry, is_possible):
        with noting(settings):
            contract(case_of(entry, settings))


# -- second stages that are wrong on purpose -------------------------------------------------------------------------


class Sound(SecondStage):
    """The head's own classifier, which breaks no contract."""

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.register_buffer("weight", torch.zeros(CLASSES, WIDTH))
        self.register_buffer("bias", torch.zeros(CLASSES))

    def fit(self, stage: Stage) -> dict[str, float]:
        self.weight.copy_(stage.weight())
        self.bias.copy_(stage.bias())
        return {}

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.linear(embeddings, self.weight, self.bias)


class DividesByTheLength(Sound):
    """Not a number for an embedding of zeros."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings / embeddings.norm(dim=1, keepdim=True))


class CentresTheBatch(Sound):
    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings - embeddings.mean(0))


class AddsToItsLastFit(Sound):
    def fit(self, stage: Stage) -> dict[str, float]:
        self.weight.add_(stage.weight())
        return {}


class WeightsOutsideItsState(Sound):
    """A scale that is not a buffer."""

    scale = 1.0

    def fit(self, stage: Stage) -> dict[str, float]:
        self.scale = 2.0
        return super().fit(stage)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.scale * super().forward(embeddings)


class TensorStaysOnTheCPU(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.zeros(WIDTH)

    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings + self.offset.to(embeddings.dtype))


class InverseFrequency(Sound):
    """Not a number for a class without images."""

    def fit(self, stage: Stage) -> dict[str, float]:
        super().fit(stage)
        sizes = torch.bincount(stage.train.labels, minlength=CLASSES)
        self.bias.copy_(sizes * (1 / sizes))
        return {}


class RequiresABias(Sound):
    def fit(self, stage: Stage) -> dict[str, float]:
        super().fit(stage)
        bias = stage.head.classifier()[1]
        self.bias.fill_(torch.nan if bias is None else 0.0)
        return {}


class SharesTheWeight(Sound):
    def fit(self, stage: Stage) -> dict[str, float]:
        self.weight = stage.head.classifier()[0].detach()
        self.bias.copy_(stage.bias())
        return {}


class ReadsTheValidationSet(Sound):
    """Without saying so in `needs_validation`."""

    def fit(self, stage: Stage) -> dict[str, float]:
        super().fit(stage)
        self.bias.fill_(0.0 if stage.validation is None else len(stage.validation))
        return {}


class ReportsATensor(Sound):
    def fit(self, stage: Stage) -> dict[str, float]:
        super().fit(stage)
        return {"tau": torch.ones(())}  # type: ignore[dict-item]


BAD: dict[type[Sound], Contract] = {
    DividesByTheLength: gives_one_finite_logit_per_class,
    CentresTheBatch: each_image_is_classified_by_itself,
    AddsToItsLastFit: fit_depends_on_the_seed_only,
    WeightsOutsideItsState: state_dict_restores_a_blank_stage,
    TensorStaysOnTheCPU: moves_and_casts_whole,
    InverseFrequency: class_without_images_does_no_harm,
    RequiresABias: head_without_bias_is_accepted,
    SharesTheWeight: head_is_left_as_it_is,
    ReadsTheValidationSet: validation_set_is_required_only_if_it_is_said_to_be,
    ReportsATensor: reports_numbers,
}


def of(build: Callable[[], SecondStage]) -> Case:
    return Case(build, linear_head)


SUITE = Suite(CONTRACTS, BAD, (Sound,), of)
