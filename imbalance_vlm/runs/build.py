"""From the sections of a complete recipe to the parts of a run.

Every part is made in the same way: its positional parameters are taken by name from what the run offers, its
keyword-only parameters from the recipe (`imbalance_vlm.components.registry.Entry.make`). Training, checking and
predicting build the same parts; they differ in where heads start (`SplitFeatures` or `BlankStarts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.corrected import CorrectedClassifier
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import FinishedRun
from imbalance_vlm.components.registry import Offers, Section, offer
from imbalance_vlm.components.settings import positionals_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import with_draw_seed
from imbalance_vlm.encoders.base import KINDS, Encoder
from imbalance_vlm.encoders.tokenizers import check_distinct
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded
from imbalance_vlm.heads.base import Head
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.recipe.columns import evaluator_sections
from imbalance_vlm.recipe.schema import datasets_in, settings_in
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.runs.splits import Starts
from imbalance_vlm.training.checkpoints import WEIGHTS_FILE, check_trained_on
from imbalance_vlm.training.loop import steps_per_epoch
from imbalance_vlm.training.schedules import Schedule
from imbalance_vlm.tuning.base import Tuning, TuningContext

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts of a run before its training."""

    long_tail: LongTail
    head: Head
    model: CorrectedClassifier
    objective: Objective


def build_parts(recipe: Recipe, data: Dataset, tuning: Tuning, context: TuningContext, starts: Starts) -> Parts:
    """Everything that the recipe trains, in the order in which random numbers are drawn.

    Raises:
        InputError: parts that cannot be trained together on this dataset.
    """
    if tuning.trains:
        data.require_training(f"tuning '{recipe['tuning']['name']}'")
    long_tail = make_long_tail(recipe, data)
    head = make_head(recipe, context, tuning, starts)
    model = make_model(recipe, head, long_tail, context.device)
    check_validation(recipe, model, data)
    return Parts(long_tail, head, model, make_objective(recipe, head, context, tuning, starts, long_tail))


def make_tuning(recipe: Recipe) -> Tuning:
    """The recipe's tuning; the caller must call its `close`, which restores the shared encoder."""
    tuning: Tuning = catalogue.TUNINGS.make(recipe["tuning"])
    return tuning


def feature_kind(recipe: Recipe) -> str:
    """The image features that the recipe's head reads; see `imbalance_vlm.encoders.base.KINDS`."""
    reads_tokens = "tokens" in catalogue.HEADS.needed(recipe["head"])
    kind: str = "tokens" if reads_tokens else recipe["encoder"].get("features", KINDS[0])
    return kind


def make_context(
    recipe: Recipe,
    encoder: Encoder,
    device: torch.device,
    resources: Resources,
    *,
    class_names: Sequence[str],
    templates: Sequence[str],
    novel_names: Sequence[str] = (),
    flips: bool = False,
) -> TuningContext:
    """What the recipe's tuning builds on."""
    return TuningContext(
        encoder=encoder,
        kind=feature_kind(recipe),
        class_names=class_names,
        novel_names=novel_names,
        templates=templates,
        device=device,
        epochs=recipe["training"]["epochs"],
        seed=recipe["seed"],
        flips=flips,
        text_features=partial(resources.text_features, encoder),
    )


def context_of(
    recipe: Recipe, data: Dataset, novel: Dataset | None, encoder: Encoder, device: torch.device, resources: Resources
) -> TuningContext:
    """What the recipe's tuning builds on, for a dataset and the classes that it leaves out."""
    return make_context(
        recipe,
        encoder,
        device,
        resources,
        class_names=data.class_names,
        templates=data.templates,
        novel_names=novel.class_names if novel else (),
        flips=data.flips,
    )


def novel_half(recipe: Recipe, resources: Resources) -> Dataset | None:
    """The classes that a recipe on base classes leaves out; None for a recipe on all classes."""
    if recipe["data"]["classes"] != "base":
        return None
    return resources.dataset(with_draw_seed(recipe["data"] | {"classes": "novel"}, recipe["seed"]))


def make_long_tail(recipe: Recipe, data: Dataset) -> LongTail:
    """The training counts, with the recipe's thresholds between many, medium and few."""
    groups = recipe["evaluation"]["groups"]
    return data.long_tail(groups["many"], groups["few"])


def make_head(recipe: Recipe, context: TuningContext, tuning: Tuning, starts: Starts) -> Head:
    """The head of the run: the recipe's own, or what the tuning makes around or in place of it."""

    def directions(section: Section) -> Any:
        init = section.get("init", "random")
        return starts.prototypes(section) if init == "prototype" else starts.directions(init)

    offers: Offers = {
        **offer(
            width=context.encoder.width(context.kind),
            num_classes=len(context.class_names),
            logit_scale=context.encoder.logit_scale,
        ),
        "directions": directions,
        "prototypes": starts.prototypes,
        "text": lambda _section: starts.directions("text"),
    }
    return tuning.head(context, partial(catalogue.HEADS.make, recipe["head"], offers)).to(context.device)


def make_model(recipe: Recipe, head: Head, long_tail: LongTail, device: torch.device) -> CorrectedClassifier:
    """The head with the recipe's second stage and post-hoc correction, both before they are fitted."""
    second_stage, post_hoc = recipe["balancing"]["second_stage"], recipe["balancing"]["post_hoc"]
    offers: Offers = {
        **offer(num_classes=long_tail.num_classes, long_tail=long_tail),
        "width": lambda _section: embedding_width(head),
    }
    return CorrectedClassifier(
        head,
        catalogue.SECOND_STAGES.make(second_stage, offers) if second_stage else None,
        catalogue.POST_HOC.make(post_hoc, offers) if post_hoc else None,
    ).to(device)


def embedding_width(head: Head) -> int:
    """Width d of a head's embeddings. A head on learned text encodes all class names for it: call it if needed."""
    with torch.no_grad():
        weight, _ = head.classifier()
    return weight.shape[1]


def make_objective(
    recipe: Recipe, head: Head, context: TuningContext, tuning: Tuning, starts: Starts, long_tail: LongTail
) -> Objective:
    """The recipe's loss, regularizers and gradient transform around the head."""
    section = recipe["balancing"]
    offers: Offers = {
        **offer(
            long_tail=long_tail,
            head=head,
            num_classes=long_tail.num_classes,
            logit_scale=head.logit_scale,
        ),
        "prototypes": lambda component: starts.prototypes(component, embedding_width(head)),
        "text": lambda _section: tuning.text(context, head),
    }
    check_reused(recipe, context.encoder)
    criterion = catalogue.LOSSES.make(section["loss"], offers)
    regularizers = [catalogue.REGULARIZERS.make(term, offers) for term in section["regularizers"]]
    regularizers += tuning.regularizers(context)
    transform = section["gradient"]
    gradient = catalogue.GRADIENTS.make(transform, offers) if transform else tuning.gradient(context)
    frozen_text = starts.directions("text") if head.learns_text else None
    return Objective(head, criterion, regularizers, gradient, frozen_text).to(context.device)


def make_training(
    recipe: Recipe, labels: Tensor, head: Head, tuning: Tuning
) -> tuple[Sampler, torch.optim.Optimizer, Schedule]:
    """The recipe's sampler, optimizer and schedule for training images with these labels, (N,)."""
    training = recipe["training"]
    steps = steps_per_epoch(labels, training["batch_size"])
    sampler: Sampler = catalogue.SAMPLERS.make(
        recipe["balancing"]["sampler"], offer(labels=labels, seed=recipe["seed"])
    )
    optimizer: torch.optim.Optimizer = catalogue.OPTIMIZERS.make(
        training["optimizer"], offer(parameters=tuning.groups(head))
    )
    schedule: Schedule = catalogue.SCHEDULES.make(
        training["schedule"], offer(epochs=training["epochs"], steps_per_epoch=steps)
    )
    return sampler, optimizer, schedule


def check_reused(recipe: Recipe, encoder: Encoder) -> None:
    """Check that the finished runs whose files the recipe uses were trained on the recipe's encoder.

    Raises:
        InputError: a run was trained on another encoder; the message holds both fingerprints.
    """
    for _, setting, value in settings_in(recipe):
        if setting.marked(FinishedRun) and value:
            check_trained_on(expanded(value) / WEIGHTS_FILE, encoder.fingerprint)


def check_validation(recipe: Recipe, model: CorrectedClassifier, data: Dataset) -> None:
    """Check that a second stage or correction that chooses a setting on validation images has such images.

    Raises:
        InputError: the dataset has none.
    """
    for key, part in (("second_stage", model.second_stage), ("post_hoc", model.post_hoc)):
        if part is not None and part.needs_validation and "val" not in data.splits:
            name = recipe["balancing"][key]["name"]
            remedy = _validation_remedy(recipe, data)
            raise InputError(
                f"`balancing.{key}` '{name}' chooses a setting on validation images, and dataset '{data.name}' has "
                f"none; give the setting (`imbalance-vlm show {name}` lists them), or {remedy}"
            )


def _validation_remedy(recipe: Recipe, data: Dataset) -> str:
    """How to get validation images: by a share that sets one aside in the largest class, where it can be set."""
    if "val_fraction" not in recipe["data"]:
        return "use a dataset that has validation images"
    largest = int(data.counts.max())
    if largest < 2:
        return "add images: no class has more than one to train on, so none can be set aside"
    return f"set images aside for validation with data.val_fraction={0.1 if largest >= 6 else 0.5}"


def check_class_names(
    recipe: Recipe, data: Dataset, novel: Dataset | None, head: Head, context: TuningContext, resources: Resources
) -> None:
    """Check the class names that only the evaluators read, before the training.

    Raises:
        InputError: names of novel classes or other datasets that are too long, or that the tokenizer does not tell
            apart; for an evaluator that compares the classes with their texts, those of the dataset too.
    """
    sections = evaluator_sections(recipe["evaluation"])
    reads_text = any("text" in positionals_of(catalogue.EVALUATORS.get(section["name"]).load()) for section in sections)
    if reads_text and head.text is None:
        check_distinct_texts(context.encoder, data)
    needs = frozenset[str]().union(*(catalogue.EVALUATORS.needed(section) for section in sections))
    if "names.new" in needs:
        others = [resources.dataset(with_draw_seed(section, recipe["seed"])) for section in datasets_in(recipe)[1:]]
        for dataset in others + ([novel] if novel else []):
            check_new_names(head, dataset, context)


def check_distinct_texts(encoder: Encoder, data: Dataset) -> None:
    """Check that the encoder's tokenizer tells the classes of a dataset apart, without encoding their names.

    Raises:
        InputError: see `imbalance_vlm.encoders.tokenizers.check_distinct`.
    """
    tokenizer = getattr(encoder, "tokenizer", None)
    if tokenizer is not None:
        check_distinct(tokenizer, data.class_names, data.templates)


def check_new_names(head: Head, dataset: Dataset, context: TuningContext) -> None:
    """Check that a head can classify by the class names of a dataset that it is not trained on.

    Raises:
        InputError: it cannot, for example because a name makes a prompt too long.
    """
    head.for_names(dataset.class_names, lambda names: context.text_features(names, dataset.templates))
