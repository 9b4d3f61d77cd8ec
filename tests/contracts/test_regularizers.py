"""What every regularizer must do.

A contract takes `make(weight=None, text=True) -> Case`: the regularizer of a run that learns text features or not, and
whether it needs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.long_tail import LongTail
from tests.contracts import (
    Contract,
    Suite,
    close,
    global_random_numbers_untouched,
    noting,
    offers,
    over,
    refuses,
    section_of,
    variants,
)

CLASSES, WIDTH = 5, 8
SETTINGS_FOR: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("image_text_contrast", "gradient_is_right"): {"distill": 0.0},  # the teacher has no gradient, which is the method
}
"""(regularizer, contract): settings under which the contract can hold, where the defaults cannot."""

LABELS = (0, 0, 0, 2, 3, 0, 2, 4)
"""Of a batch that lacks class 1."""


@dataclass(frozen=True)
class Case:
    regularizer: Regularizer
    needs_text: bool


Make = Callable[..., Case]


def unit_rows(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


HEAD = TextHead(unit_rows(CLASSES, 4))


class Text:
    """The text side of a run, whose text features are unit rows that depend on the number of names."""

    class_names: Sequence[str] = tuple("abcde")
    novel_names: Sequence[str] = ("x", "y", "z")
    templates: Sequence[str] = ("a photo of a {}.", "a {}.")
    seed = 0

    def frozen(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        return unit_rows(len(names), seed=10 * len(names) + len(templates))

    def learned(self, names: Sequence[str]) -> Callable[[], Tensor]:
        return lambda: unit_rows(len(names), seed=1000 + len(names))

    def fitting(self, names: Sequence[str]) -> list[str]:
        return list(names)


def step(labels: Sequence[int] = LABELS, *, text: bool = True, dtype: torch.dtype = torch.float64) -> StepOutputs:
    """Outputs with a gradient, and frozen text features that are related to the learned ones."""
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(len(labels), WIDTH, generator=generator, dtype=torch.float64)
    logits = torch.randn(len(labels), CLASSES, generator=generator, dtype=torch.float64)
    learned = unit_rows(CLASSES, 1)
    frozen = F.normalize(learned + 0.5 * unit_rows(CLASSES, 2), dim=-1)
    return StepOutputs(
        embeddings.to(dtype).requires_grad_(),
        torch.tensor(labels),
        logits.to(dtype).requires_grad_(),
        learned.to(dtype).requires_grad_() if text else None,
        frozen.to(dtype) if text else None,
    )


def learned_tensors(outputs: StepOutputs) -> list[Tensor]:
    return [tensor for tensor in (outputs.embeddings, outputs.logits, outputs.text) if tensor is not None]


def value_and_gradients(regularizer: Regularizer, outputs: StepOutputs) -> tuple[Tensor, list[Tensor | None]]:
    value = regularizer(outputs)
    if not value.requires_grad:
        return value, []
    return value, list(torch.autograd.grad(value, learned_tensors(outputs), allow_unused=True))


def gives_a_finite_scalar_with_gradient(make: Make) -> None:
    """For batches of any size, also of one image and of one class only."""
    for labels in (LABELS, (3,), (2, 2, 2)):
        value, gradients = value_and_gradients(make().regularizer, step(labels))
        assert value.shape == (), f"the term must be a scalar, got {tuple(value.shape)}"
        assert torch.isfinite(value), f"the term is {value.item()} for the labels {labels}"
        finite = all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)
        assert finite, f"the gradient is not finite for the labels {labels}"


def gradient_is_right(make: Make) -> None:
    """torch.autograd.gradcheck in float64, in evaluation mode, so that what moves from step to step stays."""
    outputs = step()
    regularizer = make().regularizer
    regularizer(outputs)
    regularizer.eval()

    def value(embeddings: Tensor, logits: Tensor, text: Tensor) -> Tensor:
        return regularizer(dataclasses.replace(outputs, embeddings=embeddings, logits=logits, text=text))

    inputs = tuple(learned_tensors(outputs))
    if value(*inputs).requires_grad:
        assert torch.autograd.gradcheck(value, inputs, raise_exception=False), "the gradient is not that of the value"


def order_of_the_batch_does_not_matter(make: Make) -> None:
    outputs = step()
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(
        outputs, embeddings=outputs.embeddings[order], targets=outputs.targets[order], logits=outputs.logits[order]
    )
    assert close(make().regularizer(shuffled), make().regularizer(outputs), 1e-9), "the order of the batch matters"


def state_dict_round_trip(make: Make) -> None:
    """A new regularizer that has loaded the state continues with the same values."""
    first, second = step(), step(LABELS[::-1])
    regularizer, resumed = make().regularizer, make().regularizer
    regularizer(first)
    resumed.load_state_dict(regularizer.state_dict())
    assert torch.equal(resumed(second), regularizer(second)), "the state_dict does not hold all of the state"


def evaluation_mode_changes_nothing(make: Make) -> None:
    regularizer = make().regularizer
    regularizer(step())
    regularizer.eval()
    before = {key: value.clone() for key, value in regularizer.state_dict().items()}
    regularizer(step(LABELS[::-1]))
    after = regularizer.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert not changed, f"evaluation mode changed {', '.join(changed)}"


def outputs_are_left_as_they_are(make: Make) -> None:
    outputs, untouched = step(), step()
    make().regularizer(outputs)
    for field in dataclasses.fields(outputs):
        before, after = getattr(untouched, field.name), getattr(outputs, field.name)
        assert torch.equal(before, after), f"the regularizer changed `{field.name}`"


def weight_is_left_to_the_objective(make: Make) -> None:
    """`forward` returns the term itself; `weight` is only stored."""
    for weight in (0.0, 3.0):
        regularizer = make(weight=weight).regularizer
        if regularizer.weight == weight:  # some have several weights of their own, and a common one of 1
            assert close(regularizer(step()), make().regularizer(step()), 1e-9), "the term contains its weight"


def global_random_numbers_are_untouched(make: Make) -> None:
    torch.manual_seed(1)
    with global_random_numbers_untouched("the regularizer"):
        value = make().regularizer(step())
    torch.manual_seed(2)
    assert torch.equal(make().regularizer(step()), value), "the term depends on torch's global generator"


def works_in_half_precision(make: Make) -> None:
    wanted = make().regularizer(step())
    value, gradients = value_and_gradients(make().regularizer, step(dtype=torch.bfloat16))
    difference = abs(float(value.detach()) - float(wanted.detach()))
    assert difference <= 0.05 * abs(float(wanted.detach())) + 0.02, f"the term is {difference} away in bfloat16"
    finite = all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)
    assert finite, "the gradient is not finite in bfloat16"


def gathering_all_rows_changes_nothing(make: Make) -> None:
    """One process that holds the whole batch gets the same with and without `gather`."""
    regularizer = make().regularizer
    regularizer.gather(lambda rows: rows)
    assert close(regularizer(step()), make().regularizer(step()), 1e-9), "`gather` of all rows changes the term"


def missing_text_is_refused_if_it_is_needed(make: Make) -> None:
    """As the catalogue entry says: with `text.learned` among its needs, a run without it is an InputError."""
    if make().needs_text:
        refuses(lambda: make(text=False).regularizer(step(text=False)), "learn", "a run without learned text")
    else:
        assert torch.isfinite(make(text=False).regularizer(step(text=False))), "the term without text is not finite"


CONTRACTS = (
    gives_a_finite_scalar_with_gradient,
    gradient_is_right,
    order_of_the_batch_does_not_matter,
    state_dict_round_trip,
    evaluation_mode_changes_nothing,
    outputs_are_left_as_they_are,
    weight_is_left_to_the_objective,
    global_random_numbers_are_untouched,
    works_in_half_precision,
    gathering_all_rows_changes_nothing,
    missing_text_is_refused_if_it_is_needed,
)


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    """The regularizer as a run makes it."""

    def make(weight: float | None = None, text: bool = True) -> Case:
        weights = {"weight": weight} if weight is not None and "weight" in entry.settings() else {}
        section = section_of(entry, **{**settings, **weights})
        run = offers(
            prototypes=unit_rows(CLASSES, 3),
            text=Text() if text else None,
            head=HEAD,
            num_classes=CLASSES,
            long_tail=LongTail([50, 20, 9, 4, 1]),
            logit_scale=25.0,
        )
        return Case(entry.make(section, run), "text.learned" in entry.needed(section))

    return make


@over(catalogue.REGULARIZERS, CONTRACTS)
def test_every_regularizer_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.REGULARIZERS.get(name)
    for settings in variants(entry, lambda entry, settings: maker(entry, settings)().regularizer(step())):
        with noting(settings):
            contract(maker(entry, {**settings, **SETTINGS_FOR.get((name, contract.__name__), {})}))


def test_settings_for_contracts_are_of_regularizers_and_contracts_that_exist() -> None:
    names = {contract.__name__ for contract in CONTRACTS}
    assert all(name in catalogue.REGULARIZERS and contract in names for name, contract in SETTINGS_FOR)


# -- regularizers that are wrong on purpose --------------------------------------------------------------------------


class Sound(Regularizer):
    """Mean squared distance of each embedding to the text of its class, which breaks no contract."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, outputs: StepOutputs) -> Tensor:
        if outputs.text is None:
            raise InputError("text features that are learned are needed, got none")
        return (outputs.embeddings - outputs.text[outputs.targets]).square().sum(1).mean()


class DividesByTheSpread(Sound):
    """Not a number for a batch of one image."""

    def forward(self, outputs: StepOutputs) -> Tensor:
        size = len(outputs.embeddings)
        return super().forward(outputs) / (size - 1)


class CutsTheGradient(Sound):
    def forward(self, outputs: StepOutputs) -> Tensor:
        return super().forward(outputs) * (1 + outputs.embeddings.detach().square().mean())


class FavoursTheFirstImage(Sound):
    def forward(self, outputs: StepOutputs) -> Tensor:
        return super().forward(outputs) + outputs.embeddings[0].square().sum()


class MeanOutsideItsState(Sound):
    """A moving mean that is not a buffer."""

    mean: Tensor | float = 0.0

    def forward(self, outputs: StepOutputs) -> Tensor:
        value = super().forward(outputs)
        if self.training:
            self.mean = self.mean + outputs.embeddings.detach().mean()
        return value + self.mean


class CountsInEvaluationMode(Sound):
    steps: Tensor

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, outputs: StepOutputs) -> Tensor:
        self.steps.add_(1)
        return super().forward(outputs)


class NormalisesInPlace(Sound):
    def forward(self, outputs: StepOutputs) -> Tensor:
        with torch.no_grad():
            outputs.embeddings.div_(outputs.embeddings.norm(dim=1, keepdim=True))
        return super().forward(outputs)


class AppliesItsWeight(Sound):
    def forward(self, outputs: StepOutputs) -> Tensor:
        return self.weight * super().forward(outputs)


class DropsOutImages(Sound):
    def forward(self, outputs: StepOutputs) -> Tensor:
        return super().forward(dataclasses.replace(outputs, embeddings=F.dropout(outputs.embeddings)))


class CountsInBfloat16(Sound):
    """Adds up 1000 small terms in the dtype of the embeddings."""

    def forward(self, outputs: StepOutputs) -> Tensor:
        value, total = super().forward(outputs), outputs.embeddings.new_zeros(())
        for _ in range(1000):
            total = total + value / 1000
        return total


class GathersTwice(Sound):
    """Adds a row to the batch each time."""

    gathered: Tensor | float = 0.0

    def gather(self, together: Callable[[Tensor], Tensor]) -> None:
        self.gathered = together(torch.ones(2)).sum()

    def forward(self, outputs: StepOutputs) -> Tensor:
        return super().forward(outputs) + self.gathered


class ZeroWithoutText(Sound):
    def forward(self, outputs: StepOutputs) -> Tensor:
        return outputs.embeddings.new_zeros(()) if outputs.text is None else super().forward(outputs)


BAD: dict[type[Sound], Contract] = {
    DividesByTheSpread: gives_a_finite_scalar_with_gradient,
    CutsTheGradient: gradient_is_right,
    FavoursTheFirstImage: order_of_the_batch_does_not_matter,
    MeanOutsideItsState: state_dict_round_trip,
    CountsInEvaluationMode: evaluation_mode_changes_nothing,
    NormalisesInPlace: outputs_are_left_as_they_are,
    AppliesItsWeight: weight_is_left_to_the_objective,
    DropsOutImages: global_random_numbers_are_untouched,
    CountsInBfloat16: works_in_half_precision,
    GathersTwice: gathering_all_rows_changes_nothing,
    ZeroWithoutText: missing_text_is_refused_if_it_is_needed,
}


def of(build: Callable[..., Regularizer]) -> Make:
    return lambda weight=1.0, text=True: Case(build(weight), needs_text=True)


SUITE = Suite(CONTRACTS, BAD, (Sound,), of)
