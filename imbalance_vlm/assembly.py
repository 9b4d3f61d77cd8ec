"""From the sections of a complete recipe to the parts of a run: what is looked up, made and shared."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.corrected import Corrected
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.prototype_assignment import prototypes_for
from imbalance_vlm.balancing.regularizers.base import Regularizer
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Registry
from imbalance_vlm.components.settings import positionals_of, settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import create_dataset, dataset_identity, with_draw_seed
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.features import feature_source, view_transforms
from imbalance_vlm.encoders.sources import PixelSource, Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.evaluate import DEFAULT_GROUPS
from imbalance_vlm.evaluation.metrics import Predictions
from imbalance_vlm.evaluation.novel import (
    base_to_novel,
    best_epoch,
    curve,
    head_over,
    novel_predictions,
    transfer,
)
from imbalance_vlm.evaluation.tta import views_of
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.factory import class_mean_directions, create_head, reads_tokens, text_directions
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.training.checkpoints import check_trained_on
from imbalance_vlm.training.devices import fast_layout, shard
from imbalance_vlm.training.loop import AfterEpoch
from imbalance_vlm.tuning.base import Task, Tuning
from imbalance_vlm.tuning.prompt.anchors import anchor_for
from imbalance_vlm.tuning.tuned_tower import TunedTower

Recipe = Mapping[str, Any]

TEST_VIEW_SCALE = 0.5
"""Smallest share of a test image that a random view shows, for what is learned from two views of it."""


def settings(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in ("name", "method")}


def component(registry: Registry, section: Mapping[str, Any]) -> Any:
    """The component's constructor with the recipe's settings bound."""
    entry = registry.get(section["name"])
    names = positionals_of(entry.member(section).load())

    def make(*given: Any) -> Any:
        return entry.make(section, {name: partial(_given, value) for name, value in zip(names, given, strict=False)})

    return make


def _given(value: Any, _section: Any) -> Any:
    return value


def as_key(section: Mapping[str, Any]) -> str:
    return json.dumps(section, sort_keys=True, default=str)


@lru_cache(maxsize=4)  # base and novel halves come in pairs
def dataset(section: str, identity: str) -> Dataset:
    """A dataset by its section in JSON and what its files are now; the runs of a study share it."""
    return create_dataset(**json.loads(section))


@lru_cache(maxsize=2)
def encoder(section: str, identity: str, device: torch.device) -> Encoder:
    """An encoder by its section in JSON and what its weights are now, frozen, on its device; a study shares it."""
    made = create_encoder(**json.loads(section))
    fast_layout(made.module.requires_grad_(False), device)
    return made


def encoder_settings(recipe: Recipe) -> dict[str, Any]:
    """The encoder's own section, without what says how its features are kept."""
    return {key: value for key, value in recipe["encoder"].items() if key not in settings_of(feature_source)}


def long_tail(data: Dataset, recipe: Recipe) -> LongTail:
    groups = DEFAULT_GROUPS | recipe["evaluation"]["groups"]
    return data.long_tail(groups["many"], groups["few"])


def novel_half(recipe: Recipe) -> Dataset | None:
    """The classes that a recipe on base classes leaves out; None for a recipe on all."""
    if recipe["data"]["classes"] != "base":
        return None
    section = with_draw_seed(recipe["data"] | {"classes": "novel"}, recipe["seed"])
    return dataset(as_key(section), dataset_identity(section))


def make_task(recipe: Recipe, data: Dataset, novel: Dataset | None, net: Encoder, device: torch.device) -> Task:
    """What the recipe's tuning may build on."""
    kind = "tokens" if reads_tokens(recipe["head"]["name"]) else recipe["encoder"]["features"]
    epochs, seed = recipe["training"]["epochs"], recipe["seed"]
    novel_names = novel.class_names if novel else ()
    return Task(net, kind, data.class_names, novel_names, data.templates, device, epochs, seed, data.flips)


class Features:
    """The features of a run's splits, made when asked for and timed."""

    def __init__(self, data: Dataset, task: Task, recipe: Recipe, tuning: Tuning) -> None:
        self.data = data
        self.task = task
        self.encoder = task.encoder
        self.kind = task.kind
        self.how = {key: recipe["encoder"][key] for key in settings_of(feature_source)}
        self.tuning = tuning
        self.reads_pixels = tuning.reads_pixels
        self.has_text = "text" in catalogue.encoder_entry(recipe["encoder"]["name"]).provided(recipe["encoder"])
        self.transforms = {
            "train": tuning.transforms(task),
            "test_tta": views_of(task.encoder, recipe["evaluation"]["tta"], data.flips),
            "test_views": view_transforms(task.encoder, 2, TEST_VIEW_SCALE, data.flips),
        }
        self.seconds = 0.0
        self._made: dict[tuple[str, ...], Source] = {}
        self._directions: dict[str, Tensor | None] = {}

    def batches(self, split: str) -> Source:
        """What the head reads of a split: its features, or its images where the head runs the tower itself.

        "test_views" are two random crops of the test images, "test_tta" the views that evaluation averages over.
        """
        if self.reads_pixels:
            images = resized_split(self.data.splits[split.partition("_")[0]], self.how["resized"])
            views = self.transforms.get(split, [self.encoder.transform])
            return PixelSource(images, views, self.task.device, self.how["decoder"])
        return self.source(split)

    def source(self, split: str) -> Source:
        """The features of a split, of the frozen tower."""
        base = split.partition("_")[0]
        transforms = {} if self.reads_pixels else self.transforms
        chosen = transforms.get(split, [self.encoder.transform])
        key = (base, *(str(id(transform)) for transform in chosen))  # "test" and "test_tta" are mostly the same
        if key not in self._made:
            begun = time.monotonic()
            self._made[key] = feature_source(
                self.encoder,
                self.data.splits[base],
                self.kind,
                chosen,
                self.task.device,
                f"{self.data.name} {base}",
                **self.how,
            )
            self.seconds += time.monotonic() - begun
        return self._made[key]

    def directions(self, init: str) -> Tensor | None:
        """(C, w) unit rows that a head may start from, or None for "random"; made once for a run."""
        if init not in self._directions:
            self._directions[init] = self._make_directions(init)
        return self._directions[init]

    def _make_directions(self, init: str) -> Tensor | None:
        with self.tuning.base():
            if init == "text":
                kind = "class_token" if self.kind == "tokens" else self.kind
                return text_directions(self.encoder, kind, self.data.class_names, self.data.templates)
            return class_mean_directions(self.source("train"), self.data.num_classes) if init == "class_mean" else None

    def prototypes(self, section: Mapping[str, Any]) -> Tensor:
        """(C, w) uniform prototypes, each matched to a class as the section of a head or regularizer says."""
        width = self.encoder.width(self.kind)
        like = self.directions(section["assign"])
        return prototypes_for(self.data.num_classes, width, like, section["kind"], section["prototype_seed"])

    def text(self, head: Head) -> Tensor | None:
        """(C, d) text features in the space of the head's embeddings: those it learns, or the tower's; None without."""
        if head.text is not None:
            return head.text.detach()
        return self.directions("text") if self.has_text else None


class Others:
    """Classes that are tested and were never trained: the novel half of the dataset, and other datasets."""

    def __init__(self, recipe: Recipe, novel: Features | None, features: Features) -> None:
        self.recipe = recipe
        self.settings = recipe["evaluation"]
        self.novel = novel if self.settings["novel"] else None
        self.features = features

    def head(self, head: Head) -> Head | None:
        """The head over the novel names."""
        if self.novel is None:
            return None
        templates = self.novel.data.templates
        encoder = self.features.encoder
        return head_over(head, self.novel.data.class_names, lambda names: encoder.text_features(names, templates))

    def curve(self, head: Head) -> AfterEpoch | None:
        """What the training loop calls behind each epoch, if the recipe asks for a curve."""
        every = self.settings["curve"]
        others = self.head(head) if every else None
        if others is None or self.novel is None:
            return None
        base, novel = self.features.batches("test"), self.novel.batches("test")
        return curve(head, others, base, novel, every, self.recipe["training"]["epochs"])

    def scores(self, head: Head, base: Predictions, history: list[dict[str, Any]]) -> dict[str, float]:
        """Base, novel and their means; transfer to other datasets; the best epoch of a curve."""
        found: dict[str, float] = {}
        others = self.head(head)
        if others is not None and self.novel is not None:
            sources = self.features.batches("test"), self.novel.batches("test")
            found |= base_to_novel(base, *novel_predictions(head, others, *sources))
        if self.settings["curve"]:
            found |= best_epoch(history)
        if self.settings["transfer"]:
            found |= self.transfer(head)
        return found

    def transfer(self, head: Head) -> dict[str, float]:
        """What the head makes of other datasets' names and images."""
        sets = {}
        templates = {}
        for named in self.settings["transfer"]:
            section = with_draw_seed(named, self.recipe["seed"])
            data = dataset(as_key(section), dataset_identity(section))
            part = Features(data, self.features.task, self.recipe, self.features.tuning)
            sets[data.name] = (data.class_names, part.batches("test"))
            templates[data.name] = data.templates
        encoder = self.features.encoder
        return transfer(head, sets, lambda name, names: encoder.text_features(names, templates[name]))


def make_head(section: Mapping[str, Any], features: Features) -> Head:
    """The recipe's head, started as it says."""
    own = settings(section)
    if section["name"] == "text":
        own = {"scale": features.encoder.logit_scale}
    width = features.encoder.width(features.kind)
    on_prototypes = section["name"] == "prototype" or section.get("guide") == "prototype"
    directions = features.prototypes(section) if on_prototypes else features.directions(section.get("init", "text"))
    return create_head(section["name"], width, features.data.num_classes, directions, **own)


def spread(recipe: Recipe, head: Head) -> None:
    """Spread a tower under tuning over the processes, where the recipe asks for it and there are several."""
    if recipe["training"]["shard"] and isinstance(head, TunedTower):
        shard(head.tuned.root, head)


def make_objective(recipe: Recipe, head: Head, features: Features, tail: LongTail, tuning: Tuning) -> Objective:
    """The recipe's loss, regularizers and gradient transform around the head."""
    section = recipe["balancing"]
    criterion = create_loss(section["loss"]["name"], tail, **settings(section["loss"]))
    if recipe["tuning"]["name"] == "prompt":
        check_scale(section["loss"], features)
    regularizers = [make_regularizer(one, head, features) for one in section["regularizers"]]
    regularizers += tuning.regularizers(features.task)
    transform = section["gradient"]
    if transform and transform.get("reuse"):
        check_trained_on(Path(transform["reuse"]).expanduser() / "head.safetensors", features.encoder.fingerprint)
    gradient = component(catalogue.GRADIENTS, transform)() if transform else tuning.gradient(features.task)
    return Objective(head, criterion, regularizers, gradient, features.directions("text") if head.learns_text else None)


def make_regularizer(section: Mapping[str, Any], head: Head, features: Features) -> Regularizer:
    """A regularizer of the recipe, with the prototypes or the names that it works on."""
    if section["name"] == "text_anchor":
        return anchor_for(settings(section), head, features.task)
    on_prototypes = "prototype_seed" in section
    made: Regularizer = component(catalogue.REGULARIZERS, section)(
        *([features.prototypes(section)] if on_prototypes else [])
    )
    return made


def check_scale(section: Mapping[str, Any], features: Features) -> None:
    """A loss on cosines must know the scale that a text classifier puts on them, which only the encoder knows."""
    scale = features.encoder.logit_scale
    if abs(section.get("head_scale", scale) / scale - 1) > 0.01:
        raise InputError(
            f"`balancing.loss.head_scale` must be the encoder's logit scale, {scale:.4g}, for prompts, "
            f"got {section['head_scale']:g}"
        )


def make_model(recipe: Recipe, head: Head, tail: LongTail) -> Corrected:
    """The head with the recipe's second stage and post-hoc correction, both blank."""
    stage, post_hoc = recipe["balancing"]["second_stage"], recipe["balancing"]["post_hoc"]
    with torch.no_grad():
        num_classes, width = head.classifier()[0].shape
    return Corrected(
        head,
        component(catalogue.SECOND_STAGES, stage)(width, num_classes) if stage else None,
        component(catalogue.POST_HOC, post_hoc)(tail) if post_hoc else None,
    )


def check_validation(recipe: Recipe, model: Corrected, data: Dataset) -> None:
    """Refuse, before anything is trained, a choice on validation images that are not there."""
    for key, part in (("second_stage", model.second_stage), ("post_hoc", model.post_hoc)):
        if part is not None and part.needs_validation and "val" not in data.splits:
            name = recipe["balancing"][key]["name"]
            raise InputError(
                f"`balancing.{key}` '{name}' chooses a setting on validation images, and dataset '{data.name}' has "
                f"none; set it (`imbalance-vlm show {name}` lists the settings), or set images aside, which for a "
                "folder is data.val_fraction=0.1"
            )
