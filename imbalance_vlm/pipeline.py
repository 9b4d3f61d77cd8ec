"""The whole pipeline on one screen: data -> encoder -> head -> balancing -> tuning -> training -> evaluation -> result.

`run_one` and `run_tuning` are that screen; `imbalance_vlm.assembly` makes the parts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imbalance_vlm.assembly import (
    Features,
    Others,
    Recipe,
    as_key,
    check_validation,
    component,
    dataset,
    encoder,
    encoder_settings,
    long_tail,
    make_head,
    make_model,
    make_objective,
    make_task,
    novel_half,
    spread,
)
from imbalance_vlm.balancing.corrected import Corrected
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import dataset_identity, with_draw_seed
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import encoder_identity
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.evaluation.evaluate import evaluate
from imbalance_vlm.evaluation.geometry import geometry
from imbalance_vlm.evaluation.metrics import Predictions, per_class_accuracy, scores
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note
from imbalance_vlm.results.environment import begin_peak_memory, cost, environment
from imbalance_vlm.results.folder import write_run
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training.devices import memory_errors
from imbalance_vlm.training.first_pass import first_pass
from imbalance_vlm.training.loop import AfterEpoch, Trained, steps_per_epoch, train
from imbalance_vlm.training.second_stage import correct, embedded
from imbalance_vlm.tuning.base import Tuning


def run_one(recipe: Recipe, folder: Path, device: torch.device) -> RunResult:
    """Run a complete recipe (one that `imbalance_vlm.recipe.schema.check` has filled in) and write its folder."""
    begin_peak_memory(device)
    torch.manual_seed(recipe["seed"])  # heads start from it; the order of the data has generators of its own
    section = with_draw_seed(recipe["data"], recipe["seed"])
    data = dataset(as_key(section), dataset_identity(section))
    net = encoder(as_key(encoder_settings(recipe)), encoder_identity(recipe["encoder"]), device)
    tuning = component(catalogue.TUNINGS, recipe["tuning"])()
    try:
        with memory_errors():
            return run_tuning(recipe, folder, device, data, net, tuning)
    finally:
        tuning.close()
        if recipe["training"]["shard"]:
            encoder.cache_clear()  # its tower may lie in parts from now on


def run_tuning(
    recipe: Recipe, folder: Path, device: torch.device, data: Dataset, net: Encoder, tuning: Tuning
) -> RunResult:
    """The run from here on may change the shared encoder; its caller closes `tuning`, which gives it back."""
    if tuning.trains:
        data.require_training(f"tuning '{recipe['tuning']['name']}'")
    tail = long_tail(data, recipe)
    novel = novel_half(recipe)
    task = make_task(recipe, data, novel, net, device)
    features = Features(data, task, recipe, tuning)
    others = Others(recipe, Features(novel, task, recipe, tuning) if novel else None, features)

    head = tuning.head(task, partial(make_head, recipe["head"], features)).to(device)
    model = make_model(recipe, head, tail).to(device)
    check_validation(recipe, model, data)
    objective = make_objective(recipe, head, features, tail, tuning).to(device)
    spread(recipe, head)
    trainable = sum(parameter.numel() for parameter in tuning.parameters(head))
    trained = (
        fit(recipe, objective, features, tuning, folder, after_epoch(tuning, head, others))
        if tuning.trains
        else Trained(0.0, 0.0)
    )
    chosen, seconds = correct_model(recipe, model, features, tail, folder)
    evaluation = {key: recipe["evaluation"][key] for key in settings_of(evaluate)}
    predictions = evaluate(model, features.batches("test_tta"), **evaluation)

    found = scores(predictions, tail, recipe["evaluation"]["calibration_bins"])
    found |= others.scores(head, predictions, trained.history)
    found |= geometry_of(recipe["evaluation"]["geometry"], head, features)
    spent = cost(device, trainable, features.seconds, trained.seconds + seconds, trained.images_per_second)
    record = describe(recipe, data, tail, net, found, predictions)
    record |= {"chosen": chosen, "cost": spent, "environment": environment(device)}
    return write_run(folder, recipe, record, head if model.plain else model, data, predictions, net.fingerprint)


def fit(
    recipe: Recipe,
    objective: Objective,
    features: Features,
    tuning: Tuning,
    folder: Path,
    after_epoch: AfterEpoch | None,
) -> Trained:
    """Train with the recipe's sampler, optimizer and schedule."""
    plan = recipe["training"]
    source = features.batches("train")
    steps = steps_per_epoch(source, plan["batch_size"])
    loop = {key: value for key, value in plan.items() if key not in ("optimizer", "schedule")}

    def parts(objective: Objective) -> tuple[Source, Any, Any, Any]:
        sampler = component(catalogue.SAMPLERS, recipe["balancing"]["sampler"])(source.labels.cpu(), recipe["seed"])
        optimizer = component(catalogue.OPTIMIZERS, plan["optimizer"])(tuning.groups(objective.head))
        schedule = component(catalogue.SCHEDULES, plan["schedule"])(optimizer, plan["epochs"], steps)
        return source, sampler, optimizer, schedule

    if objective.gradient.first_epochs:
        objective.gradient.learn(first_pass(objective, objective.gradient.first_epochs, folder, parts, loop))
    trained = train(objective, *parts(objective), folder, after_epoch, **loop)
    tuning.finish(objective.head)
    return trained


def after_epoch(tuning: Tuning, head: Head, others: Others) -> AfterEpoch:
    """What the training loop calls behind each epoch: the curve that a recipe asks for, and the method's own."""
    measure = others.curve(head)

    def call(epoch: int) -> dict[str, float]:
        tuning.after_epoch(head, epoch)
        return measure(epoch) if measure else {}

    return call


def correct_model(
    recipe: Recipe, model: Corrected, features: Features, tail: LongTail, folder: Path
) -> tuple[dict[str, float], float]:
    """Fit what comes after the head's training; what was chosen on validation images, and the seconds it took."""
    if model.plain:
        return {}, 0.0
    begun, encoded = time.monotonic(), features.seconds
    own = "train_plain" if features.reads_pixels else "train"  # a tuned tower may have a view for each epoch
    splits = [partial(features.batches, split) for split in (own, "test_views")]
    validation = features.batches("val") if "val" in features.data.splits else None
    chosen = correct(model, splits[0], validation, splits[1], tail, recipe["seed"], folder / "second_stage")
    for key, value in chosen.items():
        note(f"chosen: balancing.{key} = {value:.4g}")
    return chosen, time.monotonic() - begun - (features.seconds - encoded)


@torch.no_grad()
def geometry_of(split: str, head: Head, features: Features) -> dict[str, float]:
    """The geometry of a split as the trained head's own classifier sees it; nothing for "none"."""
    if split == "none":
        return {}
    source = embedded(head, features.batches(split), features.task.device)
    embeddings = torch.as_tensor(source.views[0])
    norm = embeddings.norm(dim=1).mean()  # to the length of the text's rows; the classifier makes up for it
    weight, bias = head.classifier()
    return geometry(
        embeddings / norm, source.labels, features.data.num_classes, weight * norm, features.text(head), bias=bias
    )


def describe(
    recipe: Recipe, data: Dataset, tail: LongTail, net: Encoder, found: Mapping[str, float], predictions: Predictions
) -> dict[str, Any]:
    """What was run and what came out, as result.json keeps it."""
    return {
        "seed": recipe["seed"],
        "identity": {
            "recipe": recipe["name"],
            "dataset": data.name,
            "encoder": net.name,
            "pretrained": net.pretrained,
            "pretrain_pairs": net.pretrain_pairs,
            "tuning": recipe["tuning"]["name"],
            "head": recipe["head"]["name"],
            "balancing": balancing_words(recipe),
        },
        "scores": dict(found),
        "classes": {
            "names": data.class_names,
            "train_counts": tail.counts,
            "groups": {group: len(members) for group, members in tail.groups.items()},
            "accuracy": per_class_accuracy(predictions.labels, predictions.predicted, data.num_classes),
        },
        "images": {name: len(split) for name, split in data.splits.items()} | {"skipped": len(data.skipped)},
        "skipped": list(data.skipped),
        "paper": recipe["paper"],
    }


_TRANSDUCTIVE = " (novel names: label-space transductive)"
"""Beside a term that has seen the names of the classes it is tested on."""


def balancing_words(recipe: Recipe) -> str:
    """The loss, and what is not plain of the sampler, the regularizers, the second stage and the correction."""
    section = recipe["balancing"]
    words = [] if recipe["tuning"]["name"] == "zero_shot" else [section["loss"]["name"]]
    if words and section["sampler"]["name"] != "instance":
        words.append(f"{section['sampler']['name']} sampling")
    words += [one["name"] + _TRANSDUCTIVE * (one.get("names") == "novel") for one in section["regularizers"]]
    words += [section["second_stage"]["name"]] if section["second_stage"] else []
    words += [f"post-hoc {section['post_hoc']['name']}"] if section["post_hoc"] else []
    return " + ".join(words) or "none"
