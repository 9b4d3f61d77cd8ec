"""A linear probe at the size of iNaturalist 2018: `imbalance-vlm bench probe`.

Random vectors stand in for image features; everything behind them is what a recipe runs: the feature cache, the
training loop, the evaluation and the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.cache import CHUNK, FeatureCache
from imbalance_vlm.encoders.sources import FeatureSource, Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.accuracy import Accuracy
from imbalance_vlm.evaluation.calibration import Calibration
from imbalance_vlm.evaluation.evaluate import evaluate
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import markdown, select, table
from imbalance_vlm.runs.environment import begin_peak_memory, cost
from imbalance_vlm.training.loop import steps_per_epoch, train
from imbalance_vlm.training.settings import TrainingSettings

IMBALANCE = 500
"""Largest class over smallest, as in iNaturalist 2018: 1000 to 2."""
LIMIT_GB = 8.0
T = TypeVar("T")

COLUMNS = (
    "dataset",
    "tuning",
    "head",
    "balancing",
    "overall",
    "many",
    "medium",
    "few",
    "macro_f1",
    "worst_class",
    "ece",
)


def bench_probe(
    images: int = 437_513,
    classes: int = 8_142,
    width: int = 768,
    test_images: int = 24_426,
    batch: int = 512,
    epochs: int = 1,
    loss: str = "balanced_softmax",
) -> str:
    """A linear probe on random features: cached in float16, trained, evaluated, and shown as a table.

    The classes fall geometrically from head to tail, and every class has a training and a test vector at least. The
    vectors say nothing of their class, so that the accuracies are those of guessing. The peak is the process's, which
    holds the whole training set and torch itself; neither training nor evaluation makes anything of classes x classes.

    Args:
        images: training vectors.
        classes: C.
        width: of a vector.
        test_images: vectors to test on.
        batch: vectors to a step.
        epochs: passes over the training set.
        loss: any that needs nothing but logits.

    Raises:
        InputError: an unknown loss, fewer than two classes, or fewer vectors than classes.
    """
    _check(images, classes, width, test_images, batch, epochs)
    catalogue.load_plugins()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begin_peak_memory(device)
    labels = {"train": tailed(images, classes, 0), "test": np.sort(np.arange(test_images) % classes)}
    tail = LongTail(
        np.bincount(labels["train"], minlength=classes),
        tuple(f"class {label}" for label in range(classes)),
    )
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        note(f"{images:,} + {test_images:,} vectors into a feature cache ...")
        train_on, test_on = _timed(
            seconds, "encode", lambda: [source(Path(place), split, labels[split], width, device) for split in labels]
        )
        torch.manual_seed(0)
        head = LinearHead(width, classes).to(device)
        objective = Objective(head, create_loss(loss, tail)).to(device)
        optimizer = catalogue.OPTIMIZERS.get("sgd").load()(list(head.parameters()), lr=0.1, momentum=0.9)
        sampler = catalogue.SAMPLERS.get("instance").load()(train_on.labels.cpu(), 0)
        schedule = catalogue.SCHEDULES.get("cosine").load()(epochs, steps_per_epoch(train_on, batch))
        note(f"{epochs} epoch(s) of {steps_per_epoch(train_on, batch):,} steps ...")
        plan = TrainingSettings(epochs=epochs, batch_size=batch)
        trained = _timed(
            seconds,
            "train",
            lambda: train(objective, train_on, sampler, optimizer, schedule, Path(place), settings=plan),
        )
        note("evaluation ...")
        found = _timed(seconds, "evaluate", lambda: scores(head, test_on, tail))
    spent = cost(
        device, sum(p.numel() for p in head.parameters()), seconds["encode"], trained.seconds, trained.images_per_second
    )
    shown = _timed(seconds, "table", lambda: _table(found, spent, loss))
    peak = spent["peak_memory_mb"] / 1e3
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"linear probe, {classes:,} classes, {images:,} vectors of {width} in float16, batch {batch}, {where}",
        f"  into the cache:   {seconds['encode']:8.1f} s",
        f"  training:         {seconds['train']:8.1f} s, {trained.images_per_second:,.0f} vectors/s",
        f"  evaluation:       {seconds['evaluate']:8.1f} s for {test_images:,} vectors",
        f"  table:            {seconds['table']:8.1f} s",
        f"  peak memory:      {peak:8.2f} GB ({'within' if peak <= LIMIT_GB else 'MORE THAN'} {LIMIT_GB:g} GB)",
    ]
    return "\n".join(lines) + "\n\n" + shown


def scores(head: LinearHead, source: Source, tail: LongTail, batch_size: int = 1024) -> dict[str, float]:
    """Accuracy and calibration of a head on a split."""
    evaluators = [Accuracy(tail), Calibration(tail)]
    evaluate(head, source, evaluators, batch_size)
    return dict(score for evaluator in evaluators for score in evaluator.compute())


def _check(images: int, classes: int, width: int, test_images: int, batch: int, epochs: int) -> None:
    least = {"classes": 2, "images": classes, "test_images": classes, "width": 1, "batch": 1, "epochs": 1}
    given = {
        "classes": classes,
        "images": images,
        "test_images": test_images,
        "width": width,
        "batch": batch,
        "epochs": epochs,
    }
    for name, number in given.items():
        if number < least[name]:
            why = ", one for each class" if least[name] == classes and name != "classes" else ""
            raise InputError(f"`{name}` must be at least {least[name]}{why}, got {number}")


def tailed(images: int, classes: int, seed: int) -> NDArray[np.int64]:
    """(N,) labels in order: one of every class, and the rest drawn from a geometric tail."""
    share = IMBALANCE ** -(np.arange(classes) / max(classes - 1, 1))
    drawn = np.random.default_rng(seed).choice(classes, images - classes, p=share / share.sum())
    return np.sort(np.concatenate([np.arange(classes), drawn]))


def vectors(rows: int, width: int, seed: int, start: int) -> Iterator[NDArray[np.float16]]:
    """Random rows from `start` on, chunk by chunk; a row is the same wherever one begins."""
    for first in range(start, rows, CHUNK):
        rng = np.random.default_rng([seed, first])
        yield rng.standard_normal((min(CHUNK, rows - first), width), np.float32).astype(np.float16)


def source(place: Path, split: str, labels: NDArray[np.int64], width: int, device: torch.device) -> FeatureSource:
    """A split's vectors, through a feature cache of their own."""
    seed = int(split == "test")
    described = {"encoder": "random", "split": f"random {split}", "kind": "embedding", "seed": str(seed)}
    shape = len(labels), width
    made = FeatureCache(place).get(described, shape, "float16", partial(vectors, len(labels), width, seed))
    return FeatureSource([made], labels, device)


def _table(found: dict[str, float], spent: dict[str, Any], loss: str) -> str:
    identity = {
        "recipe": "bench probe",
        "dataset": "random",
        "encoder": "random",
        "pretrained": "none",
        "pretrain_pairs": None,
        "tuning": "linear_probe",
        "head": "linear",
        "balancing": loss,
    }
    record = {"config": "probe", "seed": 0, "identity": identity, "scores": found, "cost": spent}
    return markdown(select(table([RunResult(Path(), record)]), COLUMNS))


def _timed(seconds: dict[str, float], what: str, do: Callable[[], T]) -> T:
    begun = time.monotonic()
    made = do()
    seconds[what] = time.monotonic() - begun
    return made
