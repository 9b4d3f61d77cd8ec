"""The check of all runs of a study, before the first of them trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch

from imbalance_vlm.data.prepare import with_draw_seed
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.tta import views_of
from imbalance_vlm.progress import bar
from imbalance_vlm.runs.build import (
    build_parts,
    check_class_names,
    check_distinct_texts,
    context_of,
    feature_kind,
    make_training,
    make_tuning,
    novel_half,
)
from imbalance_vlm.runs.identity import config_hash
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.runs.splits import BlankStarts


def preflight(recipes: Sequence[Mapping[str, Any]], device: torch.device, resources: Resources) -> None:
    """Build the parts of every run, without opening an image or training, and report the problems of all runs together.

    Runs that differ in their seed only are built once.

    Raises:
        InputError: the first problem of each run that has any.
    """
    problems: dict[str, list[str]] = {}  # run names by message
    distinct: dict[str, Mapping[str, Any]] = {}
    for recipe in recipes:
        distinct.setdefault(config_hash(recipe), recipe)
    with torch.random.fork_rng(devices=[]), bar(len(distinct), "check", "run") as progress:
        for recipe in distinct.values():
            try:
                build_only(recipe, device, resources)
            except InputError as error:
                problems.setdefault(str(error), []).append(recipe["name"])
            progress.update()
    if problems:
        lines = [f"  - {', '.join(names)}: {message}" for message, names in problems.items()]
        count = sum(map(len, problems.values()))
        raise InputError(
            "\n".join([f"{count} of {len(distinct)} configurations cannot run; nothing was trained", *lines])
        )


def build_only(recipe: Mapping[str, Any], device: torch.device, resources: Resources) -> None:
    """Build the parts of a run, and restore the encoder.

    Raises:
        InputError: what the run itself would raise before its training; class names of novel classes or other datasets
            that are too long or not told apart, which it would raise after it.
    """
    data = resources.dataset(with_draw_seed(recipe["data"], recipe["seed"]))
    encoder = resources.encoder(recipe["encoder"], device)
    tuning = make_tuning(recipe)
    with closing(tuning):
        novel = novel_half(recipe, resources)
        context = context_of(recipe, data, novel, encoder, device, resources)
        check_text = partial(check_distinct_texts, encoder, data)
        starts = BlankStarts(data.num_classes, encoder.width(feature_kind(recipe)), check_text)
        head = build_parts(recipe, data, tuning, context, starts).head
        tuning.transforms(context)
        views_of(encoder.preprocessing, recipe["evaluation"]["tta"], data.flips, recipe["evaluation"]["tta_margin"])
        if tuning.trains:
            make_training(recipe, torch.from_numpy(data.splits["train"].labels), head, tuning)
        check_class_names(recipe, data, novel, head, context, resources)
