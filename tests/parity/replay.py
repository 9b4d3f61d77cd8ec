"""Our training on the problem of `problem.py`, made from a recipe as a run makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.gradients.base import PlainGradient
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs.build import build_parts, make_context, make_training, make_tuning
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.runs.splits import BlankStarts
from imbalance_vlm.training.distributed.processes import ProcessGroup
from imbalance_vlm.training.first_pass import trained_parameters
from imbalance_vlm.training.loop import set_rates
from imbalance_vlm.training.step import TrainingStep
from imbalance_vlm.tuning.base import Tuning
from tests.parity import problem

RECORDS = Path(__file__).parent / "records"
TOLERANCE = 1e-4  # relative


def record_of(name: str) -> dict[str, Any]:
    """The kept record of a method, as tools/parity wrote it."""
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    return record


class TextStarts(BlankStarts):
    """Heads start from the text features of the class names."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(len(problem.NAMES), encoder.width("embedding"))
        self.text = encoder.text_features(problem.NAMES, [problem.TEMPLATE])

    def directions(self, init: str) -> Tensor | None:
        return self.text if init == "text" else super().directions(init)


def replay(
    folder: Path,
    recipe: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    novel_names: tuple[str, ...] = (),
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Train 20 steps.

    Args:
        folder: of the model; see `problem.write_model`.
        recipe: the sections that differ from the defaults of a run.
        names: our name of each trained value, by its name in the released code and in the order there. A name that ends
            in ".T" stands for the transpose, one that ends in "[i]" for an entry of a stacked value.
        novel_names: class names that are tested but not trained.

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
    split = Split(FileImages(folder, tuple(f"{number}.png" for number in range(len(labels)))), labels.numpy())
    data = Dataset("parity", problem.NAMES, {"train": split, "test": split}, (problem.TEMPLATE,))
    data = replace(data, group_counts=np.array(problem.COUNTS))
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
        parts = build_parts(resolved, data, tuning, context, TextStarts(encoder))
        head, objective = parts.head, parts.objective
        assert {name.split("[")[0].removesuffix(".T") for name in names.values()} == {
            name for name, value in head.named_parameters() if value.requires_grad
        }
        with torch.no_grad():
            for number, name in enumerate(names.values(), start=1):
                value = _value(head, name)
                value.copy_(problem.start(*value.shape, seed=number))
        features = problem.images() if tuning.reads_pixels else encoder.image_features(problem.images(), context.kind)
        training = partial(_train, resolved, tuning, objective, features.detach())
        transform = objective.gradient
        if transform.first_epochs:
            kept = {name: value.detach().clone() for name, value in objective.state_dict().items()}
            objective.gradient = PlainGradient()
            _, _, snapshots = training()
            objective.gradient = transform
            objective.load_state_dict(kept)
            transform.learn(snapshots[: transform.first_epochs])
        losses, rates, _ = training()
        tuning.finish(head)
        return losses, rates, {theirs: _value(head, ours).detach().clone() for theirs, ours in names.items()}


def _train(
    recipe: Mapping[str, Any], tuning: Tuning, objective: Objective, features: Tensor
) -> tuple[list[float], list[float], list[dict[str, Tensor]]]:
    """Loss and rate of each step, and the trained parameters after each epoch."""
    head, labels = objective.head, problem.labels()
    _, optimizer, schedule = make_training(recipe, labels, head, tuning)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    objective.gradient.start({name: value for name, value in head.named_parameters() if value.requires_grad})
    step, snapshots = TrainingStep(objective, optimizer, ProcessGroup()), []
    losses: list[float] = []
    rates: list[float] = []
    for epoch in range(problem.EPOCHS):
        objective.train()
        objective.on_epoch(epoch, problem.EPOCHS)
        for rows in torch.arange(len(labels)).split(problem.BATCH):
            set_rates(optimizer, schedule, len(rates))
            rates.append(optimizer.param_groups[0]["lr"])
            losses += [float(loss) for loss in step([rows], iter([(features[rows], labels[rows])]))]
        tuning.after_epoch(head, epoch + 1)
        snapshots.append(trained_parameters(objective))
    return losses, rates, snapshots


def _value(head: Head, name: str) -> Tensor:
    """A trained value in the shape that the released code has it in."""
    name, _, entry = name.partition("[")
    value = head.get_parameter(name.removesuffix(".T"))
    value = value.t() if name.endswith(".T") else value
    return value[int(entry[:-1])] if entry else value


def check(run: Mapping[str, Any], losses: list[float], rates: list[float], values: Mapping[str, Tensor]) -> None:
    """Compare a training with the recorded one; `values` by the names of the released code."""
    assert rates == pytest.approx(run["rates"], rel=1e-6)
    assert losses == pytest.approx(run["losses"], rel=TOLERANCE)
    for name, recorded in run["values"].items():
        norm, product = problem.checksum(values[name])
        assert norm == pytest.approx(recorded[0], rel=TOLERANCE), name
        assert product == pytest.approx(recorded[1], abs=TOLERANCE * recorded[0]), name


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: base[key] | changes[key] for key in base.keys() & changes.keys() if isinstance(base[key], dict)}
    return {**base, **changes, **both}
