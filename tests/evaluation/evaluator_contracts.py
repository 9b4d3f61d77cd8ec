"""What every evaluator must do. `test_base.py` runs these over the registry, and on evaluators that are wrong.

A contract takes `make() -> (evaluator, its section)`, and raises AssertionError when the evaluator breaks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Evaluator
from tests.evaluation.scenes import BASE

Make = Callable[[], tuple[Evaluator, Mapping[str, Any]]]


def logits_and_targets() -> tuple[Tensor, Tensor]:
    """Logits (N, C) and targets (N,) that hold every class; as many rows as a scene's test split."""
    generator = torch.Generator().manual_seed(3)
    size = 47
    logits = 2 * torch.randn(size, BASE, generator=generator)
    return logits, torch.arange(size) % BASE


def computed(make: Make, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    evaluator, _ = make()
    for logits, targets in batches:
        evaluator.update(logits, targets)
    return dict(evaluator.compute())


def equal(first: Mapping[str, float], second: Mapping[str, float], tolerance: float = 0.0) -> bool:
    return list(first) == list(second) and all(
        math.isclose(first[name], second[name], rel_tol=tolerance, abs_tol=tolerance)
        or (math.isnan(first[name]) and math.isnan(second[name]))
        for name in first
    )


def batches_do_not_matter(make: Make) -> None:
    logits, targets = logits_and_targets()
    at_once = computed(make, [(logits, targets)])
    parts = computed(make, zip(logits.split(5), targets.split(5), strict=True))
    assert equal(at_once, parts), f"fed batch by batch: {parts}, at once: {at_once}"


def order_does_not_matter(make: Make) -> None:
    logits, targets = logits_and_targets()
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    first, second = computed(make, [(logits, targets)]), computed(make, [(logits[shuffled], targets[shuffled])])
    assert equal(first, second, 1e-9), f"in order: {first}, shuffled: {second}"


def yields_its_columns(make: Make) -> None:
    evaluator, section = make()
    evaluator.update(*logits_and_targets())
    names = [name for name, _ in evaluator.compute()]
    columns = [column.name for column in type(evaluator).columns_of(section)]
    assert len(set(columns)) == len(columns), f"a column twice: {columns}"
    assert names == [column for column in columns if column in names], f"yields {names}, columns {columns}"
    assert names, "yields nothing"


def computing_again_changes_nothing(make: Make) -> None:
    evaluator, _ = make()
    evaluator.update(*logits_and_targets())
    first, second = dict(evaluator.compute()), dict(evaluator.compute())
    assert equal(first, second), f"first {first}, then {second}"


def leaves_its_inputs_unchanged(make: Make) -> None:
    evaluator, _ = make()
    batch = logits_and_targets()
    evaluator.update(*batch)
    list(evaluator.compute())
    pairs = zip(batch, logits_and_targets(), strict=True)
    assert all(torch.equal(used, fresh) for used, fresh in pairs), "changed the logits or targets of a batch"


def without_images_scores_are_nan(make: Make) -> None:
    logits, targets = logits_and_targets()
    scores, wrong = computed(make, [(logits, targets)]), computed(make, [(-logits, targets.flip(0))])
    try:
        empty = computed(make, [])
    except InputError:  # of an evaluator that reads the same images itself, and misses them here
        return
    assert list(empty) == list(scores), f"without images {list(empty)}, with images {list(scores)}"
    of_images = [name for name in scores if not equal({name: scores[name]}, {name: wrong[name]})]
    assert all(math.isnan(empty[name]) for name in of_images), f"without images: {empty}"


def values_are_floats(make: Make) -> None:
    evaluator, _ = make()
    evaluator.update(*logits_and_targets())
    for name, value in evaluator.compute():
        assert type(value) is float, f"{name} is a {type(value).__name__}"


def epochs_are_among_the_columns(make: Make) -> None:
    evaluator, section = make()
    columns = {column.name for column in type(evaluator).columns_of(section)}
    names = {name for epoch in range(1, 5) for name, _ in evaluator.after_epoch(epoch, 4)}
    assert names <= columns, f"{names - columns} is no column"


def draws_no_random_numbers(make: Make) -> None:
    state = torch.get_rng_state()
    evaluator, _ = make()
    list(evaluator.after_epoch(1, 1))
    evaluator.update(*logits_and_targets())
    list(evaluator.compute())
    assert torch.equal(torch.get_rng_state(), state), "drew from torch's generator"


CONTRACTS = (
    batches_do_not_matter,
    order_does_not_matter,
    yields_its_columns,
    computing_again_changes_nothing,
    leaves_its_inputs_unchanged,
    without_images_scores_are_nan,
    values_are_floats,
    epochs_are_among_the_columns,
    draws_no_random_numbers,
)
