"""Our training on the problem of `problem.py`, made from a recipe as a run makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.gradients.base import PlainGradient
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.factory import text_directions
from imbalance_vlm.long_tail import LongTail
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

MEASURED: dict[tuple[str, str], float] = {}
"""Largest relative difference of a loss, by record and case; filled by `check` for `tests.parity.measure`."""


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
    criterion: Loss | None = None,
    features: Tensor | None = None,
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
        criterion: takes the place of the recipe's loss, for a pair of head and loss that a recipe refuses.
        features: (40, w) of the problem's images, read by the head in place of the encoder's.

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
    encoder = create_encoder(f"local-dir:{folder}", final_norm=resolved["encoder"]["final_norm"])
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
        objective.criterion = criterion or objective.criterion
        assert {name.split("[")[0].removesuffix(".T") for name in names.values()} == {
            name for name, value in head.named_parameters() if value.requires_grad
        }
        with torch.no_grad():
            for number, (theirs, ours) in enumerate(names.items(), start=1):
                value = _value(head, ours)
                value.copy_(start(number, theirs, value))
        if features is None:
            pixels = problem.images()
            features = pixels if tuning.reads_pixels else encoder.image_features(pixels, context.kind).detach()
        training = partial(_train, resolved, tuning, objective, features, decay_all)
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
    recipe: Mapping[str, Any], tuning: Tuning, objective: Objective, features: Tensor, decay_all: bool
) -> tuple[list[float], list[float], list[dict[str, Tensor]]]:
    """Loss and rate of each step, and the trained parameters after each epoch."""
    head, labels = objective.head, problem.labels()
    _, optimizer, schedule = make_training(recipe, labels, head, tuning)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if decay_all:
            group["weight_decay"] = recipe["training"]["optimizer"]["weight_decay"]
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


def replay_stage(
    run: Mapping[str, Any],
    second_stage: SecondStage,
    head: Head,
    embeddings: Tensor,
    names: Mapping[str, str],
    *,
    start: Start = plain_start,
    decayed: tuple[str, ...] = (),
    nesterov: bool = False,
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Train a second stage 20 steps on the embeddings of a fixed first stage.

    The module, its loss and the use of the first stage are ours. The rates and the decay are the record's: ours lets
    the rate fall at every step and decays matrices only, and no setting changes that.

    Args:
        run: the record.
        second_stage: blank.
        head: the first stage.
        embeddings: (40, d) of the problem's images.
        names: as in `replay`.
        start: as in `replay`.
        decayed: released names of the values that decay by 5e-4.
        nesterov: the kind of momentum.

    Returns:
        As `replay`.
    """
    losses: list[float] = []

    def train(module: torch.nn.Module, criterion: Loss, make_sampler: Any, training: Any) -> None:
        values = {theirs: module.get_parameter(ours) for theirs, ours in names.items()}
        assert set(values.values()) == {value for value in module.parameters() if value.requires_grad}
        with torch.no_grad():
            for number, (name, value) in enumerate(values.items(), start=1):
                value.copy_(start(number, name, value))
        groups = [{"params": [value], "weight_decay": 5e-4 * (name in decayed)} for name, value in values.items()]
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=nesterov)
        batches = list(zip(embeddings.split(problem.BATCH), problem.labels().split(problem.BATCH), strict=True))
        for rate, (rows, targets) in zip(run["rates"], batches * problem.EPOCHS, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = criterion(module(rows), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))

    source = FeatureSource([embeddings.numpy()], problem.labels().numpy(), torch.device("cpu"))
    second_stage.fit(Stage(head, source, None, LongTail(problem.COUNTS), train, lambda: (embeddings, embeddings)))
    trained = {theirs: second_stage.get_parameter(ours).detach() for theirs, ours in names.items()}
    return losses, run["rates"], trained


def _value(head: torch.nn.Module, name: str) -> Tensor:
    """A trained value in the shape that the released code has it in."""
    name, _, entry = name.partition("[")
    value = head.get_parameter(name.removesuffix(".T"))
    value = value.t() if name.endswith(".T") else value
    return value[int(entry[:-1])] if entry else value


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
