"""Our training on the problem of `problem.py`, made from a recipe as a run makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.factory import text_directions
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs.build import build_parts, make_context, make_training, make_tuning
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.runs.splits import BlankStarts
from imbalance_vlm.training.distributed.processes import ProcessGroup
from imbalance_vlm.training.loop import set_rates
from imbalance_vlm.training.step import TrainingStep
from tests.parity import problem

RECORDS = Path(__file__).parent / "records"
TOLERANCE = 1e-4  # relative


def record_of(name: str) -> dict[str, Any]:
    """The kept record of a method, as tools/parity wrote it; each run knows its place."""
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    for case, run in record["runs"].items():
        run["place"] = (name, case)
    return record


class TextStarts(BlankStarts):
    """Heads start from the text features of the class names."""

    def __init__(self, encoder: Encoder, kind: str) -> None:
        super().__init__(len(problem.NAMES), encoder.width(kind))
        kind = "class_token" if kind == "tokens" else kind
        text = encoder.text_features(problem.NAMES, [problem.TEMPLATE])
        self.text = text_directions(encoder, kind, problem.NAMES, text)

    def directions(self, init: str) -> Tensor | None:
        return self.text if init == "text" else super().directions(init)


Start = Callable[[int, str, Tensor], Tensor]
"""(number of a trained value, counted from 1; its released name; the value as made) -> its start."""


def plain_start(number: int, name: str, value: Tensor) -> Tensor:
    """Small random numbers."""
    return problem.start(*value.shape, seed=number)


def replay(
    folder: Path,
    recipe: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    novel_names: tuple[str, ...] = (),
    start: Start = plain_start,
    decay_all: bool = False,
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Train 20 steps.

    Args:
        folder: of the model; see `problem.write_model`.
        recipe: the sections that differ from the defaults of a run.
        names: our name of each trained value, by its name in the released code and in the order there. A name that ends
            in ".T" stands for the transpose, one that ends in "[i]" for an entry of a stacked value.
        novel_names: class names that are tested but not trained.
        start: where each trained value starts.
        decay_all: decay biases, norms and scales too, as plain SGD does. Ours decays matrices only; no setting changes
            that, so it is done to the optimizer.

    Returns:
        Loss and rate of each step, and the trained values after the last, by their released names.
    """
    defaults = {
        "name": "parity",
        "data": {"name": "icons_lt"},
        "encoder": {"name": f"local-dir:{folder}", "pretrained": None},
        "training": {"epochs": problem.EPOCHS, "batch_size": problem.BATCH},
    }
    (resolved,) = plan(_merged(defaults, recipe)).recipes
    encoder = create_encoder(f"local-dir:{folder}")
    labels = problem.labels()
    counted = np.repeat(np.arange(len(problem.NAMES)), problem.COUNTS)  # labels of a training set of these counts
    split = Split(FileImages(folder, tuple(f"{number}.png" for number in range(len(counted)))), counted)
    data = Dataset("parity", problem.NAMES, {"train": split, "test": split}, (problem.TEMPLATE,))
    tuning = make_tuning(resolved)
    with closing(tuning):
        context = make_context(
            resolved,
            encoder,
            torch.device("cpu"),
            Resources(),
            class_names=problem.NAMES,
            templates=data.templates,
            novel_names=novel_names,
        )
        parts = build_parts(resolved, data, tuning, context, TextStarts(encoder, context.kind))
        head, objective = parts.head, parts.objective
        assert {name.split("[")[0].removesuffix(".T") for name in names.values()} == {
            name for name, value in head.named_parameters() if value.requires_grad
        }
        with torch.no_grad():
            for number, (theirs, ours) in enumerate(names.items(), start=1):
                value = _value(head, ours)
                value.copy_(start(number, theirs, value))
        _, optimizer, schedule = make_training(resolved, labels, head, tuning)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
            if decay_all:
                group["weight_decay"] = resolved["training"]["optimizer"]["weight_decay"]
        objective.gradient.start({name: value for name, value in head.named_parameters() if value.requires_grad})
        step, losses, rates = TrainingStep(objective, optimizer, ProcessGroup()), [], []
        for number, (pixels, targets) in enumerate(problem.batches()):
            epoch, first = divmod(number, problem.STEPS_PER_EPOCH)
            objective.train()
            if first == 0:
                objective.on_epoch(epoch, problem.EPOCHS)
            set_rates(optimizer, schedule, number)
            rates.append(optimizer.param_groups[0]["lr"])
            features = pixels if tuning.reads_pixels else encoder.image_features(pixels, context.kind).detach()
            losses += [float(loss) for loss in step([torch.arange(len(targets))], iter([(features, targets)]))]
            if first == problem.STEPS_PER_EPOCH - 1:
                tuning.after_epoch(head, epoch + 1)
        return losses, rates, {theirs: _value(head, ours).detach().clone() for theirs, ours in names.items()}


def _value(head: torch.nn.Module, name: str) -> Tensor:
    """A trained value in the shape that the released code has it in."""
    name, _, entry = name.partition("[")
    value = head.get_parameter(name.removesuffix(".T"))
    value = value.t() if name.endswith(".T") else value
    return value[int(entry[:-1])] if entry else value


MEASURED: dict[tuple[str, str], float] = {}
"""Largest relative difference of a loss, by record and case; filled by `check` for `tests.parity.measure`."""


def check(
    run: Mapping[str, Any], losses: Sequence[float], rates: Sequence[float], values: Mapping[str, Tensor]
) -> None:
    """Compare a training with the recorded one; `values` by the names of the released code.

    Where a record states how ours differs, the losses must differ.
    """
    assert len(losses) == len(run["losses"])
    difference = max((abs(a - b) / abs(b) for a, b in zip(losses, run["losses"], strict=True)), default=0.0)
    if not losses:
        difference = max(_difference(values[name], recorded) for name, recorded in run["values"].items())
    MEASURED[run["place"]] = difference
    if "differs" in run:
        assert difference > TOLERANCE, f"does not differ any more: {run['differs']}"
        return
    assert list(rates) == pytest.approx(run["rates"], rel=1e-6)
    assert list(losses) == pytest.approx(run["losses"], rel=TOLERANCE)
    for name, recorded in run["values"].items():
        assert _difference(values[name], recorded) < TOLERANCE, name


def _difference(value: Tensor, recorded: Sequence[float]) -> float:
    """Largest difference of a tensor's checksum from the recorded one, relative to the recorded norm."""
    return max(abs(a - b) for a, b in zip(problem.checksum(value), recorded, strict=True)) / recorded[0]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: base[key] | changes[key] for key in base.keys() & changes.keys() if isinstance(base[key], dict)}
    return {**base, **changes, **both}
