"""The whole pipeline: data -> encoder -> tuning -> head -> balancing -> training -> evaluation -> result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from imbalance_vlm.balancing.corrected import CorrectedClassifier
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import offer
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import with_draw_seed
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import Evaluator
from imbalance_vlm.evaluation.evaluate import evaluate
from imbalance_vlm.heads.base import Head
from imbalance_vlm.launcher import world_size
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note
from imbalance_vlm.recipe.columns import evaluator_sections
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.runs.build import (
    Recipe,
    build_parts,
    check_class_names,
    context_of,
    make_training,
    make_tuning,
    novel_half,
)
from imbalance_vlm.runs.classifier import TrainedClassifier
from imbalance_vlm.runs.environment import begin_peak_memory, cost
from imbalance_vlm.runs.record import describe, write_run
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.runs.splits import SplitFeatures
from imbalance_vlm.training import second_stage
from imbalance_vlm.training.distributed.sharding import shard_tower
from imbalance_vlm.training.first_pass import first_pass
from imbalance_vlm.training.loop import Trained, train
from imbalance_vlm.training.memory import memory_errors
from imbalance_vlm.training.settings import TrainingSettings
from imbalance_vlm.tuning.base import Tuning


def run_recipe(recipe: Recipe, folder: Path, device: torch.device, resources: Resources) -> RunResult:
    """Run a complete recipe (see `imbalance_vlm.recipe.resolve`) and write its folder."""
    begin_peak_memory(device)
    torch.manual_seed(recipe["seed"])  # heads start from it; the order of the data has generators of its own
    data = resources.dataset(with_draw_seed(recipe["data"], recipe["seed"]))
    encoder = resources.encoder(recipe["encoder"], device)
    tuning = make_tuning(recipe)
    try:
        with closing(tuning), memory_errors():  # closing restores the shared encoder
            return _run(recipe, folder, device, resources, data, encoder, tuning)
    finally:
        if recipe["training"]["shard"]:
            resources.forget_encoders()  # the tower may be sharded over the processes


def _run(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    resources: Resources,
    data: Dataset,
    encoder: Encoder,
    tuning: Tuning,
) -> RunResult:
    novel = novel_half(recipe, resources)
    context = context_of(recipe, data, novel, encoder, device, resources)

    def open_features(dataset: Dataset) -> SplitFeatures:
        evaluation = recipe["evaluation"]
        return SplitFeatures(
            dataset, context, tuning, resources, recipe["encoder"], evaluation["tta"], evaluation["tta_margin"]
        )

    features = open_features(data)
    parts = build_parts(recipe, data, tuning, context, features)
    long_tail, head, model = parts.long_tail, parts.head, parts.model
    if recipe["training"]["shard"] and world_size() > 1:
        shard(head)
    trainable = sum(parameter.numel() for parameter in tuning.parameters(head))
    history: list[dict[str, Any]] = []
    evaluators = make_evaluators(
        recipe, head, long_tail, features, open_features(novel) if novel else None, open_features, resources, history
    )

    with torch.random.fork_rng(devices=[]):
        check_class_names(recipe, data, novel, head, context, resources)
    trained = Trained(0.0, 0.0)
    if tuning.trains:
        trained = fit(recipe, parts.objective, features, tuning, folder, after_epoch(recipe, tuning, head, evaluators))
    history += trained.history
    chosen, seconds = correct(recipe, model, features, long_tail, folder)
    predictions = evaluate(model, features.of("test", "tta"), evaluators, recipe["evaluation"]["batch_size"])
    scores = {name: value for evaluator in evaluators for name, value in evaluator.compute()}

    costs = cost(device, trainable, features.seconds, trained.seconds + seconds, trained.images_per_second)
    record = describe(recipe, data, long_tail, encoder, scores, predictions, device)
    record |= {"chosen": chosen, "cost": costs}
    classifier = TrainedClassifier(recipe, data.templates, long_tail, encoder, tuning, model, device)
    return write_run(folder, classifier, record, data, predictions)


def shard(head: Head) -> None:
    """Shard the tower that is trained with the head over the processes, before the optimizer is made.

    Raises:
        InputError: no tower is trained.
    """
    if head.trained_tower is None:
        raise InputError("`training.shard` must be false where no tower is trained, got true")
    shard_tower(head.trained_tower, head)


def make_evaluators(
    recipe: Recipe,
    head: Head,
    long_tail: LongTail,
    features: SplitFeatures,
    novel_features: SplitFeatures | None,
    open_features: Callable[[Dataset], SplitFeatures],
    resources: Resources,
    history: list[dict[str, Any]],
) -> list[Evaluator]:
    """The evaluators that the recipe names, in the order of the catalogue."""
    has_text = "text" in catalogue.ENCODERS.provided(recipe["encoder"])

    def text() -> Any:
        """(C, d) text features in the space of the head's embeddings: those it learns, or else the tower's."""
        if head.text is not None:
            return head.text.detach()
        return features.directions("text") if has_text else None

    def open_section(section: Mapping[str, Any]) -> SplitFeatures:
        return open_features(resources.dataset(with_draw_seed(section, recipe["seed"])))

    offers = offer(
        long_tail=long_tail,
        head=head,
        features=features,
        novel_features=novel_features,
        open_features=open_section,
        text=text,
        text_features=features.context.text_features,
        history=history,
    )
    return [catalogue.EVALUATORS.make(section, offers) for section in evaluator_sections(recipe["evaluation"])]


def fit(
    recipe: Recipe,
    objective: Objective,
    features: SplitFeatures,
    tuning: Tuning,
    folder: Path,
    each_epoch: Callable[[int], dict[str, float]],
) -> Trained:
    """Train with the recipe's sampler, optimizer and schedule."""
    source = features.of("train", "random")
    labels = source.labels.cpu()
    settings = TrainingSettings(**{key: recipe["training"][key] for key in settings_of(TrainingSettings)})

    def parts(objective: Objective) -> Any:
        return source, *make_training(recipe, labels, objective.head, tuning)

    if objective.gradient.first_epochs:
        objective.gradient.learn(first_pass(objective, objective.gradient.first_epochs, folder, parts, settings))
    _, sampler, optimizer, schedule = parts(objective)
    trained = train(objective, source, sampler, optimizer, schedule, folder, each_epoch, settings=settings)
    tuning.finish(objective.head)
    return trained


def after_epoch(
    recipe: Recipe, tuning: Tuning, head: Head, evaluators: list[Evaluator]
) -> Callable[[int], dict[str, float]]:
    """What the training loop calls after each epoch, counted from 1; the numbers go to metrics.jsonl."""
    epochs = recipe["training"]["epochs"]

    def call(epoch: int) -> dict[str, float]:
        tuning.after_epoch(head, epoch)
        return {name: value for evaluator in evaluators for name, value in evaluator.after_epoch(epoch, epochs)}

    return call


def correct(
    recipe: Recipe, model: CorrectedClassifier, features: SplitFeatures, long_tail: LongTail, folder: Path
) -> tuple[dict[str, float], float]:
    """Fit the second stage and the correction; returns what was chosen on validation images, and the seconds."""
    if model.plain:
        return {}, 0.0
    start, encoding = time.monotonic(), features.seconds
    chosen = second_stage.correct(
        model,
        # A tower that is trained may have new crops in every epoch: the training images are then read without crops.
        lambda: features.of("train", "plain" if features.tuning.reads_pixels else "random"),
        features.of("val") if "val" in features.data.splits else None,
        lambda: features.of("test", "random"),
        long_tail,
        recipe["seed"],
        folder / "second_stage",
    )
    for key, value in chosen.items():
        note(f"chosen: balancing.{key} = {value:.4g}")
    return chosen, time.monotonic() - start - (features.seconds - encoding)
