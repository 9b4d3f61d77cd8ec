"""Contracts of evaluators, over everything registered, and seen to fail on evaluators that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from imbalance_vlm import LongTail
from imbalance_vlm.components import catalogue
from imbalance_vlm.evaluation.base import Column, Evaluator, columns_of, registered_columns
from imbalance_vlm.evaluation.evaluate import evaluate
from imbalance_vlm.evaluation.recorder import PredictionRecorder
from tests.contracts import Contract, Suite
from tests.evaluation import evaluator_contracts
from tests.evaluation.evaluator_contracts import CONTRACTS, Make
from tests.evaluation.scenes import BASE, NOVEL, Features, LogitSource, constant, directions, text_features, zero_shot

SETTINGS: dict[str, dict[str, Any]] = {
    "base_to_novel": {"curve": 2},
    "transfer": {"datasets": [{"name": "pets"}, {"name": "food"}]},
}


def offers() -> dict[str, Any]:
    """What a run offers to evaluators."""
    history = [{"epoch": 2, "loss": 1.0, "base": 50.0, "novel": 30.0, "h": 37.5}]
    return {
        "long_tail": LongTail([200, 50, 3]),
        "head": zero_shot(),
        "features": Features(BASE, 1),
        "novel_features": Features(NOVEL, 5, ("x", "y")),
        "open_features": lambda section: Features(len(section["name"]), 9),
        "text": lambda: directions(BASE, 7),
        "text_features": text_features,
        "history": history,
    }


def make_of(name: str) -> Make:
    section = {"name": name, **SETTINGS.get(name, {})}
    offered = {key: constant(value) for key, value in offers().items()}
    return lambda: (catalogue.EVALUATORS.make(section, offered), section)


@pytest.mark.parametrize("name", catalogue.EVALUATORS.names())
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_evaluator_keeps_the_contract(contract: Any, name: str) -> None:
    contract(make_of(name))


class Good(Evaluator):
    """Share of the targets that are class 0."""

    columns: ClassVar[tuple[Column, ...]] = (Column("zeros"),)

    def __init__(self) -> None:
        self.targets: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.targets.append(targets)

    def compute(self) -> Iterator[tuple[str, float]]:
        targets = torch.cat([torch.zeros(0), *self.targets])
        yield "zeros", float((targets == 0).double().mean())  # the mean of nothing is NaN


class LastBatchOnly(Good):
    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.targets = [targets]


class FirstImage(Good):
    def compute(self) -> Iterator[tuple[str, float]]:
        yield "zeros", float(torch.cat(self.targets)[0])


class OtherName(Good):
    def compute(self) -> Iterator[tuple[str, float]]:
        yield "zeroes", 1.0


class ColumnTwice(Good):
    columns = (Column("zeros"), Column("zeros"))


class ColumnsBackwards(Good):
    columns = (Column("zeros"), Column("ones"))

    def compute(self) -> Iterator[tuple[str, float]]:
        yield "ones", 1.0
        yield "zeros", 1.0


class YieldsNothing(Good):
    def compute(self) -> Iterator[tuple[str, float]]:
        return iter(())


class EmptiedByComputing(Good):
    def compute(self) -> Iterator[tuple[str, float]]:
        yield from super().compute()
        self.targets.clear()


class ChangesLogits(Good):
    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(logits, targets)
        logits.zero_()


class ZeroWithoutImages(Good):
    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(logits, (logits.argmax(1) == targets).long())

    def compute(self) -> Iterator[tuple[str, float]]:
        yield from super().compute() if self.targets else [("zeros", 0.0)]


class TensorValue(Good):
    def compute(self) -> Iterator[tuple[str, float]]:
        yield "zeros", torch.tensor(1.0)  # type: ignore[misc]


class UnknownEpochNumber(Good):
    def after_epoch(self, epoch: int, epochs: int) -> Iterator[tuple[str, float]]:
        yield "ones", 1.0


class Draws(Good):
    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(logits, targets[torch.randperm(len(targets))])


BAD: dict[type[Good], Contract] = {
    LastBatchOnly: evaluator_contracts.batches_do_not_matter,
    FirstImage: evaluator_contracts.order_does_not_matter,
    OtherName: evaluator_contracts.yields_its_columns,
    ColumnTwice: evaluator_contracts.yields_its_columns,
    ColumnsBackwards: evaluator_contracts.yields_its_columns,
    YieldsNothing: evaluator_contracts.yields_its_columns,
    EmptiedByComputing: evaluator_contracts.computing_again_changes_nothing,
    ChangesLogits: evaluator_contracts.leaves_its_inputs_unchanged,
    ZeroWithoutImages: evaluator_contracts.without_images_scores_are_nan,
    TensorValue: evaluator_contracts.values_are_floats,
    UnknownEpochNumber: evaluator_contracts.epochs_are_among_the_columns,
    Draws: evaluator_contracts.draws_no_random_numbers,
}
SUITE = Suite(CONTRACTS, BAD, (Good,), of=lambda build: lambda: (build(), {}))


def test_columns_follow_from_the_sections_of_a_recipe() -> None:
    sections: list[Mapping[str, Any]] = [{"name": "accuracy"}, {"name": "transfer", "datasets": [{"name": "pets"}]}]
    names = [column.name for column in columns_of(sections)]
    assert names[:4] == ["overall", "many", "medium", "few"]
    assert names[-2:] == ["transfer_pets", "transfer"]
    assert "best_epoch" not in [column.name for column in columns_of([{"name": "base_to_novel"}])]
    assert "best_epoch" in [column.name for column in columns_of([{"name": "base_to_novel", "curve": 1}])]


def test_no_two_registered_evaluators_share_a_column() -> None:
    names = [column.name for column in registered_columns()]
    assert len(set(names)) == len(names)


def test_an_evaluator_does_nothing_by_default() -> None:
    evaluator = Evaluator()
    evaluator.update(torch.zeros(1, 2), torch.zeros(1))
    assert [*evaluator.compute(), *evaluator.after_epoch(1, 2)] == []
    assert type(evaluator).columns_of({}) == ()


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (torch.zeros(4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool)),
    ],
    ids=["per pixel", "several labels per image"],
)
def test_evaluators_receive_other_outputs_than_one_label_per_image(logits: Tensor, targets: Tensor) -> None:
    evaluator = Good()
    predictions = evaluate(torch.nn.Identity(), LogitSource(logits, targets), [evaluator], 3)
    assert torch.equal(torch.cat(evaluator.targets), targets)
    assert dict(evaluator.compute()) == {"zeros": 1.0}
    assert not len(predictions.labels)


def test_the_recorder_has_no_columns() -> None:
    assert PredictionRecorder.columns == ()
