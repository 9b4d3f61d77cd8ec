"""What every head must do.

A contract takes `make(seed=0, directions=None, num_classes=CLASSES) -> Case`: the head in evaluation mode, made under
torch's seed from unit directions that depend on the seed, and what its catalogue entry says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.linear import LinearHead
from tests.contracts import (
    Contract,
    Suite,
    close,
    is_ours,
    noting,
    offers,
    on_another_device,
    over,
    section_of,
    variants,
)

WIDTH, CLASSES, BATCH, TOKENS = 8, 5, 6, 4


@dataclass(frozen=True)
class Case:
    """A head, whether it reads all tokens, and what it provides to a recipe."""

    head: Head
    reads_tokens: bool
    provides: frozenset[str]

    def features(self, rows: int = BATCH, seed: int = 1) -> Tensor:
        """Features (B, w), or tokens (B, T, w)."""
        shape = (rows, TOKENS, WIDTH) if self.reads_tokens else (rows, WIDTH)
        return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Make = Callable[..., Case]


def targets(rows: int = BATCH) -> Tensor:
    return torch.arange(rows) % CLASSES


def unit_rows(seed: int, num_classes: int = CLASSES) -> Tensor:
    rows = torch.randn(num_classes, WIDTH, generator=torch.Generator().manual_seed(100 + seed))
    return F.normalize(rows, dim=-1)


def away_from_its_start(case: Case) -> Head:
    """The head with other parameters than it starts with: zeros and identities hide mistakes."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, case.head.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return case.head


def gives_one_logit_per_class(make: Make) -> None:
    for num_classes in (CLASSES, 2):
        case = make(num_classes=num_classes)
        got = tuple(case.head(case.features()).shape)
        assert got == (BATCH, num_classes), f"logits must be ({BATCH}, {num_classes}), got {got}"


def logits_are_linear_in_the_embedding(make: Make) -> None:
    """logits = embeddings @ W.T + b, with W and b from `classifier`, which second stages start from."""
    case = make()
    head = away_from_its_start(case)
    embeddings = head.embed(case.features())
    weight, bias = head.classifier()
    assert embeddings.ndim == 2, f"embeddings must be (B, d), got {tuple(embeddings.shape)}"
    wanted_shape = (CLASSES, embeddings.shape[1])
    assert weight.shape == wanted_shape, f"the classifier's weight must be {wanted_shape}, got {tuple(weight.shape)}"
    wanted = embeddings @ weight.t() + (0.0 if bias is None else bias)
    assert close(head.classify(embeddings), wanted, 1e-4), "`classify` is not embeddings @ weight.T + bias"
    assert close(head(case.features()), wanted, 1e-4), "the logits are not those of `classify(embed(features))`"


def each_image_is_classified_by_itself(make: Make) -> None:
    """Neither the order of a batch nor its other images matter; a batch of one is a batch."""
    case = make()
    head, features = away_from_its_start(case), case.features()
    logits = head(features)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    assert close(head(features[order]), logits[order], 1e-4), "the order of the batch matters"
    assert close(head(features[:1]), logits[:1], 1e-4), "an image alone gets other logits than in a batch"


def finite_values_and_gradients(make: Make) -> None:
    """For features that are all zero, tiny, large or equal; gradients with respect to every trained parameter."""
    case = make()
    head = case.head.train()
    for name, features in {
        "zero": torch.zeros_like(case.features()),
        "tiny": 1e-6 * case.features(),
        "large": 1e4 * case.features(),
        "equal": torch.ones_like(case.features()),
    }.items():
        logits = head(features)
        assert torch.isfinite(logits).all(), f"logits of {name} features are not finite"
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        grads = torch.autograd.grad(logits.square().mean(), parameters, allow_unused=True) if parameters else ()
        assert all(grad is None or torch.isfinite(grad).all() for grad in grads), f"{name} features: infinite gradient"


def every_trained_parameter_gets_a_gradient(make: Make) -> None:
    case = make()
    head = away_from_its_start(case).train()
    logits = head(case.features())
    trained = {key: parameter for key, parameter in head.named_parameters() if parameter.requires_grad}
    assert logits.requires_grad is bool(trained), (
        "the logits must require a gradient if and only if something is trained"
    )
    if trained:
        of_each = logits if logits.ndim == 2 else logits.mean(1)  # several experts, (B, E, C) in training
        F.cross_entropy(of_each, targets()).backward()
        without = [key for key, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()]
        assert not without, f"no gradient reaches {', '.join(without)}"


def starts_are_determined_by_the_seed(make: Make) -> None:
    first, second = make(seed=4).head.state_dict(), make(seed=4).head.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first), "two heads of one seed differ"


def directions_are_copied(make: Make) -> None:
    """Training must not change the tensor that the head started from, nor the other way round."""
    directions = unit_rows(3)
    case = make(directions=directions)
    before = case.head(case.features())
    away_from_its_start(case)
    assert torch.equal(directions, unit_rows(3)), "the head changes the directions that it starts from"
    case = make(directions=directions)
    directions.zero_()
    assert close(case.head(case.features()), before), "the head shares memory with the directions that it starts from"


def state_dict_round_trip(make: Make) -> None:
    """A head made under another seed gives the same logits, and goes on observing in the same way, once it has loaded
    the state."""
    case, other = make(seed=0), make(seed=1).head
    head = away_from_its_start(case)
    head.observe(head.embed(case.features()).detach(), targets())
    other.load_state_dict(head.state_dict())
    for seed in (2, 3):
        features = case.features(seed=seed)
        assert torch.equal(other(features), head(features)), "the state_dict does not hold all of the state"
        for observer in (head, other):
            observer.observe(observer.embed(features).detach(), targets())


def observing_is_no_training(make: Make) -> None:
    """`observe` takes batches of one and batches without a class, changes no parameter and leaves logits finite."""
    case = make()
    head = away_from_its_start(case)
    before = {key: parameter.clone() for key, parameter in head.named_parameters()}
    for labels in (torch.tensor([2]), torch.tensor([0, 0, 3, 3])):
        head.observe(head.embed(case.features(len(labels))).detach(), labels)
        assert torch.isfinite(head(case.features())).all(), "logits are not finite after a batch without some classes"
    after = dict(head.named_parameters())
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert not changed, f"`observe` changed the parameters {', '.join(changed)}"
    assert not any(buffer.requires_grad for buffer in head.buffers()), "`observe` keeps a graph"


def works_in_half_precision(make: Make) -> None:
    case = make()
    head = away_from_its_start(case)
    wanted = head(case.features()).detach()
    low = head.to(torch.bfloat16)(case.features().bfloat16())
    assert low.dtype == torch.bfloat16, f"logits of a bfloat16 head are {low.dtype}"
    difference = float((low.detach().float() - wanted).norm() / wanted.norm())
    assert difference < 0.1, f"logits in bfloat16 are {100 * difference:.0f} % away"


def moves_whole(make: Make) -> None:
    """`.to(device)` moves every tensor."""
    case = make()
    head, features = case.head.to("meta"), case.features().to("meta")
    with on_another_device("the head"):
        head.observe(head.embed(features).detach(), targets().to("meta"))
        logits = head(features)
    assert logits.device.type == "meta", f"the logits stayed on {logits.device}"


def says_what_it_learns(make: Make) -> None:
    """The entry's capabilities are true: the compatibility of a recipe's parts rests on them."""
    case = make()
    head = away_from_its_start(case)
    learned = head.embed(case.features()).requires_grad
    for capability, holds in (
        ("embedding.learned", learned),
        ("trained", any(parameter.requires_grad for parameter in head.parameters())),
        ("cosines", head.logit_scale is not None),
    ):
        assert (capability in case.provides) is holds, f"the entry must provide '{capability}' exactly if it holds"


def known_scale_is_that_of_cosines(make: Make) -> None:
    """With a `logit_scale` s, logits are s times the cosines of embeddings and classifier rows."""
    case = make()
    head = away_from_its_start(case)
    if head.logit_scale is not None:
        embeddings, (weight, _) = head.embed(case.features()), head.classifier()
        cosines = F.normalize(embeddings, dim=1) @ F.normalize(weight, dim=1).t()
        assert close(head(case.features()), head.logit_scale * cosines, 1e-4), "logits are not scaled cosines"


def other_names_are_read_or_refused(make: Make) -> None:
    """`for_names` gives a head over the new classes, or says that it cannot."""
    case = make()
    try:
        other = case.head.for_names(["heron", "owl"], lambda names: unit_rows(7, len(names)))
    except InputError:
        assert "names" not in case.provides, "the entry provides 'names', and the head refuses new ones"
        return
    got = tuple(other(case.features()).shape)
    assert got == (BATCH, 2), f"logits over 2 new classes must be ({BATCH}, 2), got {got}"


CONTRACTS = (
    gives_one_logit_per_class,
    logits_are_linear_in_the_embedding,
    each_image_is_classified_by_itself,
    finite_values_and_gradients,
    every_trained_parameter_gets_a_gradient,
    starts_are_determined_by_the_seed,
    directions_are_copied,
    state_dict_round_trip,
    observing_is_no_training,
    works_in_half_precision,
    moves_whole,
    says_what_it_learns,
    known_scale_is_that_of_cosines,
    other_names_are_read_or_refused,
)


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    """The head as a run makes it."""

    def make(seed: int = 0, directions: Tensor | None = None, num_classes: int = CLASSES) -> Case:
        section = section_of(entry, **settings)
        rows = unit_rows(seed, num_classes) if directions is None else directions
        run = offers(
            width=WIDTH, num_classes=num_classes, directions=rows, prototypes=rows, text=rows, logit_scale=30.0
        )
        torch.manual_seed(seed)
        head: Head = entry.make(section, run)
        return Case(head.eval(), "tokens" in entry.needed(section), entry.provided(section))

    return make


@over(catalogue.HEADS, CONTRACTS)
def test_every_head_keeps_every_contract(name: str, contract: Contract) -> None:
    for settings in variants(catalogue.HEADS.get(name), lambda entry, settings: maker(entry, settings)()):
        with noting(settings):
            contract(maker(catalogue.HEADS.get(name), settings))


@pytest.mark.parametrize(
    "name", [entry.name for entry in catalogue.HEADS if is_ours(entry) and "init" in entry.settings()]
)
def test_random_start_differs_from_seed_to_seed(name: str) -> None:
    entry = catalogue.HEADS.get(name)

    def start(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        run = offers(width=WIDTH, num_classes=CLASSES, directions=None)
        head: Head = entry.make(section_of(entry, init="random"), run)
        return list(head.state_dict().values())

    assert not all(torch.equal(a, b) for a, b in zip(start(0), start(1), strict=True))


# -- heads that are wrong on purpose ---------------------------------------------------------------------------------


class Sound(LinearHead):
    """An affine map of the features as they are, which breaks no contract."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__(WIDTH, len(directions), directions, normalise=False)


class LogitForUnknown(Sound):
    """One logit more than there are classes."""

    def classify(self, embeddings: Tensor) -> Tensor:
        return F.pad(super().classify(embeddings), (0, 1))


class ScalesOutsideItsClassifier(Sound):
    def classify(self, embeddings: Tensor) -> Tensor:
        return 2 * super().classify(embeddings)


class CentresTheBatch(Sound):
    def embed(self, features: Tensor) -> Tensor:
        return features - features.mean(0)


class DividesByTheLength(Sound):
    """Not a number at zero."""

    def embed(self, features: Tensor) -> Tensor:
        return features / features.norm(dim=1, keepdim=True)


class UnusedParameter(Sound):
    def __init__(self, directions: Tensor) -> None:
        super().__init__(directions)
        self.unused = nn.Parameter(torch.ones(3))


class OtherNumbersEachTime(Sound):
    """Draws from a generator of its own."""

    generator = torch.Generator().manual_seed(0)

    def __init__(self, directions: Tensor) -> None:
        super().__init__(directions)
        with torch.no_grad():
            self.layer.bias.copy_(torch.randn(len(directions), generator=self.generator))


class SharesTheDirections(Sound):
    def __init__(self, directions: Tensor) -> None:
        super().__init__(directions)
        self.layer.weight = nn.Parameter(directions)


class MeansOutsideItsState(Sound):
    """A moving mean that is not a buffer."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__(directions)
        self.means = torch.zeros(WIDTH)

    def embed(self, features: Tensor) -> Tensor:
        return features - self.means.to(features)

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        self.means = self.means.to(embeddings) + embeddings.mean(0)


class MeansOfAbsentClasses(Sound):
    """Not a number for a class that a batch does not hold."""

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        classes = F.one_hot(targets, CLASSES).to(embeddings)
        self.layer.weight.data = classes.t() @ embeddings / classes.sum(0)[:, None]


class ComputesInFloat32(Sound):
    def classify(self, embeddings: Tensor) -> Tensor:
        return F.linear(embeddings.float(), self.layer.weight.float(), self.layer.bias.float())


class TensorStaysOnTheCPU(Sound):
    def __init__(self, directions: Tensor) -> None:
        super().__init__(directions)
        self.offset = torch.zeros(WIDTH)

    def embed(self, features: Tensor) -> Tensor:
        return features + self.offset.to(features.dtype)


class LearnsItsEmbeddingUnannounced(Sound):
    def __init__(self, directions: Tensor) -> None:
        super().__init__(directions)
        self.offset = nn.Parameter(torch.zeros(WIDTH))

    def embed(self, features: Tensor) -> Tensor:
        return features + self.offset.to(features.dtype)


class ClaimsAScale(Sound):
    logit_scale = 10.0


class OldNumberOfClasses(Sound):
    """The same classes, whatever their new names are."""

    def for_names(self, class_names: Any, text_features: Any = None) -> Head:
        return copy.deepcopy(self)


BAD: dict[type[Sound], Contract] = {
    LogitForUnknown: gives_one_logit_per_class,
    ScalesOutsideItsClassifier: logits_are_linear_in_the_embedding,
    CentresTheBatch: each_image_is_classified_by_itself,
    DividesByTheLength: finite_values_and_gradients,
    UnusedParameter: every_trained_parameter_gets_a_gradient,
    OtherNumbersEachTime: starts_are_determined_by_the_seed,
    SharesTheDirections: directions_are_copied,
    MeansOutsideItsState: state_dict_round_trip,
    MeansOfAbsentClasses: observing_is_no_training,
    ComputesInFloat32: works_in_half_precision,
    TensorStaysOnTheCPU: moves_whole,
    LearnsItsEmbeddingUnannounced: says_what_it_learns,
    ClaimsAScale: known_scale_is_that_of_cosines,
    OldNumberOfClasses: other_names_are_read_or_refused,
}


def of(build: Callable[[Tensor], Head]) -> Make:
    def make(seed: int = 0, directions: Tensor | None = None, num_classes: int = CLASSES) -> Case:
        torch.manual_seed(seed)
        head = build(unit_rows(seed, num_classes) if directions is None else directions)
        return Case(head.eval(), reads_tokens=False, provides=frozenset({"trained"}))

    return make


SUITE = Suite(CONTRACTS, BAD, (Sound,), of)
