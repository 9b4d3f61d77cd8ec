"""A linear probe at the size of iNaturalist 2018: `imbalance-vlm bench probe`.

Random vectors stand in for image features; everything after them is what a recipe runs: the feature cache, the training
loop, the evaluation and the table.
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
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.benchmarks.measurement import check_at_least_one, device_name
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
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.training.loop import Trained, steps_per_epoch, train
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.training.schedules import cosine
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
    device: str = "auto",
) -> str:
    """A linear probe on random features: cached in float16, trained, evaluated, and shown as a table.

    The class counts fall geometrically from head to tail; every class has at least one training and one test vector.
    The vectors do not depend on their class, so that the accuracies are those of guessing. The peak memory is that of
    the process, which holds the whole training set and torch itself; neither training nor evaluation makes anything of
    size classes x classes.

    Args:
        images: training vectors.
        classes: number of classes C.
        width: width of a vector.
        test_images: test vectors.
        batch: vectors per step.
        epochs: passes over the training set.
        loss: a loss that needs nothing but logits.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Raises:
        InputError: an unknown loss, fewer than two classes, fewer vectors than classes, or a device that this machine
            does not have.
    """
    _check(images, classes, width, test_images, batch, epochs)
    catalogue.load_plugins()
    torch_device = resolve_device(device)
    begin_peak_memory(torch_device)
    labels = {"train": tailed(images, classes, 0), "test": np.sort(np.arange(test_images) % classes)}
    tail = LongTail(
        np.bincount(labels["train"], minlength=classes),
        tuple(f"class {label}" for label in range(classes)),
    )
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        note(f"{images:,} + {test_images:,} vectors into a feature cache ...")
        train_source, test_source = _timed(
            seconds,
            "encode",
            lambda: [source(folder, split, labels[split], width, torch_device) for split in labels],
        )
        head, trained = _timed(seconds, "train", lambda: fit(train_source, tail, loss, batch, epochs, folder))
        note("evaluation ...")
        results = _timed(seconds, "evaluate", lambda: scores(head, test_source, tail))
    costs = cost(
        torch_device,
        sum(parameter.numel() for parameter in head.parameters()),
        seconds["encode"],
        trained.seconds,
        trained.images_per_second,
    )
    rows = _timed(seconds, "table", lambda: _table(results, costs, loss))
    title = f"linear probe, {classes:,} classes, {images:,} vectors of {width} in float16, batch {batch}"
    lines = [
        f"{title}, {device_name(torch_device)}",
        f"  into the cache:   {seconds['encode']:8.1f} s",
        f"  training:         {seconds['train']:8.1f} s, {trained.images_per_second:,.0f} vectors/s",
        f"  evaluation:       {seconds['evaluate']:8.1f} s for {test_images:,} vectors",
        f"  table:            {seconds['table']:8.1f} s",
        _peak_line(costs["peak_memory_mb"] / 1e3),
    ]
    return "\n".join(lines) + "\n\n" + rows


def fit(
    source: FeatureSource, tail: LongTail, loss: str, batch: int, epochs: int, folder: Path
) -> tuple[LinearHead, Trained]:
    """Train a linear head on a split with SGD and a cosine schedule."""
    torch.manual_seed(0)
    head = LinearHead(source.views[0].shape[1], tail.num_classes).to(source.device)
    objective = Objective(head, create_loss(loss, tail)).to(source.device)
    optimizer = sgd(list(head.parameters()), lr=0.1, momentum=0.9)
    sampler = InstanceSampler(source.labels.cpu(), 0)
    steps = steps_per_epoch(source, batch)
    note(f"{epochs} epoch(s) of {steps:,} steps ...")
    settings = TrainingSettings(epochs=epochs, batch_size=batch)
    return head, train(objective, source, sampler, optimizer, cosine(epochs, steps), folder, settings=settings)


def _peak_line(gigabytes: float) -> str:
    verdict = "within" if gigabytes <= LIMIT_GB else "MORE THAN"
    return f"  peak memory:      {gigabytes:8.2f} GB ({verdict} {LIMIT_GB:g} GB)"


def scores(head: LinearHead, source: Source, tail: LongTail, batch_size: int = 1024) -> dict[str, float]:
    """Accuracy and calibration of a head on a split."""
    evaluators = [Accuracy(tail), Calibration(tail)]
    evaluate(head, source, evaluators, batch_size)
    return dict(score for evaluator in evaluators for score in evaluator.compute())


def _check(images: int, classes: int, width: int, test_images: int, batch: int, epochs: int) -> None:
    if classes < 2:
        raise InputError(f"`classes` must be at least 2, got {classes}")
    for name, number in (("images", images), ("test_images", test_images)):
        if number < classes:
            raise InputError(f"`{name}` must be at least {classes}, one for each class, got {number}")
    check_at_least_one(width=width, batch=batch, epochs=epochs)


def tailed(images: int, classes: int, seed: int) -> NDArray[np.int64]:
    """(N,) sorted labels: one of every class, and the rest drawn from a geometric tail."""
    share = IMBALANCE ** -(np.arange(classes) / max(classes - 1, 1))
    drawn = np.random.default_rng(seed).choice(classes, images - classes, p=share / share.sum())
    return np.sort(np.concatenate([np.arange(classes), drawn]))


def vectors(rows: int, width: int, seed: int, start: int) -> Iterator[NDArray[np.float16]]:
    """Random rows from `start` on, in chunks; a row does not depend on `start`, a multiple of `CHUNK`."""
    for first in range(start, rows, CHUNK):
        rng = np.random.default_rng([seed, first])
        yield rng.standard_normal((min(CHUNK, rows - first), width), np.float32).astype(np.float16)


def source(folder: Path, split: str, labels: NDArray[np.int64], width: int, device: torch.device) -> FeatureSource:
    """The vectors of a split, written to a feature cache in `folder` and read from it."""
    seed = int(split == "test")
    key = {"encoder": "random", "split": f"random {split}", "kind": "embedding", "seed": str(seed)}
    shape = len(labels), width
    features = FeatureCache(folder).get(key, shape, "float16", partial(vectors, len(labels), width, seed))
    return FeatureSource([features], labels, device)


def _table(scores: dict[str, float], costs: dict[str, Any], loss: str) -> str:
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
    record = {"config": "probe", "seed": 0, "identity": identity, "scores": scores, "cost": costs}
    return markdown(select(table([RunResult(Path(), record)]), COLUMNS))


def _timed(seconds: dict[str, float], name: str, do: Callable[[], T]) -> T:
    """The result of `do`, whose duration is stored in `seconds`."""
    begun = time.monotonic()
    result = do()
    seconds[name] = time.monotonic() - begun
    return result
