"""The whole pipeline on one screen: data -> encoder -> head -> balancing -> tuning -> training -> evaluation -> result.

`run_one` is that screen; everything below it looks components up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_vlm import catalogue
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import create_dataset, dataset_identity
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import create_encoder, encoder_identity
from imbalance_vlm.encoders.features import feature_source, view_transforms
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.evaluation.evaluate import DEFAULT_GROUPS, evaluate
from imbalance_vlm.evaluation.metrics import Predictions, per_class_accuracy, scores
from imbalance_vlm.heads.factory import class_mean_directions, create_head, reads_tokens, text_directions
from imbalance_vlm.longtail import LongTail
from imbalance_vlm.registry import Registry, settings_of
from imbalance_vlm.results.environment import begin_peak_memory, cost, environment
from imbalance_vlm.results.folder import write_run
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training.loop import Trained, steps_per_epoch, train

Recipe = Mapping[str, Any]


def run_one(recipe: Recipe, folder: Path, device: torch.device) -> RunResult:
    """Run a complete recipe (one that `imbalance_vlm.recipe.schema.check` has filled in) and write its folder."""
    begin_peak_memory(device)
    torch.manual_seed(recipe["seed"])  # heads start from it; the order of the data has generators of its own
    data = dataset(as_key(recipe["data"]), dataset_identity(recipe["data"]))
    tail = long_tail(data, recipe)
    net = encoder(as_key(encoder_settings(recipe)), encoder_identity(recipe["encoder"]), device)
    tuning = component(catalogue.TUNINGS, recipe["tuning"])()
    features = Features(data, net, recipe, device, tuning.views, tuning.min_scale)

    head = make_head(recipe["head"], features).to(device)
    criterion = create_loss(recipe["balancing"]["loss"]["name"], tail, **settings(recipe["balancing"]["loss"])).to(
        device
    )
    trained = fit(recipe, head, criterion, features, tuning, folder) if tuning.trains else Trained(0.0, 0.0)
    predictions = evaluate(head, features.source("test"), **settings(recipe["evaluation"]))

    found = scores(predictions, tail, recipe["evaluation"]["calibration_bins"])
    trainable = sum(parameter.numel() for parameter in tuning.parameters(head))
    spent = cost(device, trainable, features.seconds, trained.seconds, trained.images_per_second)
    record = describe(recipe, data, tail, net, found, predictions) | {"cost": spent, "environment": environment(device)}
    return write_run(folder, recipe, record, head, data, predictions)


def fit(recipe: Recipe, head: nn.Module, criterion: Loss, features: Features, tuning: Any, folder: Path) -> Trained:
    """Train with the recipe's sampler, optimizer and schedule."""
    plan = recipe["training"]
    source = features.source("train")
    optimizer = component(catalogue.OPTIMIZERS, plan["optimizer"])(tuning.parameters(head))
    sampler = component(catalogue.SAMPLERS, recipe["balancing"]["sampler"])(source.labels.cpu(), recipe["seed"])
    steps = steps_per_epoch(source, plan["batch_size"])
    schedule = component(catalogue.SCHEDULES, plan["schedule"])(optimizer, plan["epochs"], steps)
    loop = {key: value for key, value in plan.items() if key not in ("optimizer", "schedule")}
    return train(head, criterion, source, sampler, optimizer, schedule, folder, **loop)


class Features:
    """The features of a run's splits, made when asked for and timed."""

    def __init__(
        self, data: Dataset, encoder: Encoder, recipe: Recipe, device: torch.device, views: int, min_scale: float
    ) -> None:
        self.data = data
        self.encoder = encoder
        self.device = device
        section = recipe["encoder"]
        self.kind = "tokens" if reads_tokens(recipe["head"]["name"]) else section["features"]
        self.how = {key: section[key] for key in settings_of(feature_source)}
        self.transforms = {"train": view_transforms(encoder, views, min_scale, data.flips)}
        self.seconds = 0.0
        self._made: dict[str, Source] = {}

    def source(self, split: str) -> Source:
        if split not in self._made:
            begun = time.monotonic()
            self._made[split] = feature_source(
                self.encoder,
                self.data.splits[split],
                self.kind,
                self.transforms.get(split, [self.encoder.transform]),
                self.device,
                f"{self.data.name} {split}",
                **self.how,
            )
            self.seconds += time.monotonic() - begun
        return self._made[split]

    def directions(self, init: str) -> Tensor | None:
        """(C, w) unit rows that a head may start from, or None for "random"."""
        if init == "text":
            kind = "class_token" if self.kind == "tokens" else self.kind
            return text_directions(self.encoder, kind, self.data.class_names, self.data.templates)
        return class_mean_directions(self.source("train"), self.data.num_classes) if init == "class_mean" else None


def make_head(section: Mapping[str, Any], features: Features) -> nn.Module:
    """The recipe's head, started as it says."""
    own = settings(section)
    if section["name"] == "text":
        own = {"scale": features.encoder.logit_scale}
    width = features.encoder.width(features.kind)
    directions = features.directions(section.get("init", "text"))
    return create_head(section["name"], width, features.data.num_classes, directions, **own)


def long_tail(data: Dataset, recipe: Recipe) -> LongTail:
    groups = DEFAULT_GROUPS | recipe["evaluation"]["groups"]
    return LongTail(data.counts, data.class_names, groups["many"], groups["few"], recipe["data"]["allow_empty"])


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


def balancing_words(recipe: Recipe) -> str:
    """The loss, and the sampler where it is not the plain one."""
    if recipe["tuning"]["name"] == "zero_shot":
        return "none"
    loss, sampler = recipe["balancing"]["loss"]["name"], recipe["balancing"]["sampler"]["name"]
    return loss if sampler == "instance" else f"{loss} + {sampler} sampling"


def encoder_settings(recipe: Recipe) -> dict[str, Any]:
    """The encoder's own section, without what says how its features are kept."""
    return {key: value for key, value in recipe["encoder"].items() if key not in settings_of(feature_source)}


def settings(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def component(registry: Registry, section: Mapping[str, Any]) -> Any:
    """The component's constructor with the recipe's settings bound."""
    build = registry.get(section["name"]).load()
    return lambda *positional: build(*positional, **settings(section))


def as_key(section: Mapping[str, Any]) -> str:
    return json.dumps(section, sort_keys=True, default=str)


@lru_cache(maxsize=2)
def dataset(section: str, identity: str) -> Dataset:
    """A dataset by its section in JSON and what its files are now; the runs of a study share it."""
    return create_dataset(**json.loads(section))


@lru_cache(maxsize=2)
def encoder(section: str, identity: str, device: torch.device) -> Encoder:
    """An encoder by its section in JSON and what its weights are now, frozen, on its device; a study shares it."""
    made = create_encoder(**json.loads(section))
    made.module.requires_grad_(False).to(device)
    return made
