"""Datasets by name, with the settings that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Count, Natural, Part
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.subsets import base_novel, few_shot, with_decay
from imbalance_vlm.data.tails import Factor, Order, Shift, Tail, with_shifted_test, with_tail
from imbalance_vlm.errors import InputError

SIMPLE_TEMPLATES = ("a photo of a {}.",)


def prepare(
    dataset: Dataset,
    *,
    templates: str | list[str] = "dataset",
    allow_empty: bool = False,
    tail: Tail | None = None,
    tail_factor: Factor = 100.0,
    tail_largest: Count | None = None,
    tail_order: Order = "label",
    shots: Count | None = None,
    classes: Literal["all", "base", "novel"] = "all",
    tau: Part = 1.0,
    test_shift: Shift | None = None,
    test_shift_factor: Factor = 10.0,
    draw_seed: Natural | None = 0,
    split_by: Literal["train", "dataset"] = "train",
) -> Dataset:
    """A dataset as the recipe wants it. The steps are taken in the order of the arguments from `tail` to `test_shift`.

    Args:
        dataset: as its reader gives it.
        templates: "dataset" for the dataset's own, "simple" for "a photo of a {}.", "openai" for the 80 of CLIP's
            ImageNet ensemble (from open_clip), or a list of sentences with one `{}` each.
        allow_empty: accept classes without a training image (see `LongTail`).
        tail: thin the training images to a tail of this shape; null leaves them as they are.
        tail_factor: largest class over smallest of that tail.
        tail_largest: images of its head class; null for the largest class there is.
        tail_order: which classes are its head: the first labels, the largest, or ones drawn.
        shots: training images of each class, drawn over all classes; as many to validate on, but 4 at most.
        classes: "base" for the first half of the classes, "novel" for the other, numbered anew.
        tau: with `shots`, smallest over largest training class, decaying from `shots` in a drawn head order; novel
            classes are left as they are.
        test_shift: make the test classes a tail as in training ("forward"), the reverse ("backward") or all alike.
        test_shift_factor: largest test class over smallest.
        draw_seed: of everything drawn here. It does not depend on the run's seed, so that all seeds have the same
            images; null takes the run's seed, so that their spread holds that of the draw (0 where there is no run).
        split_by: whose counts make a class many, medium or few: those of the images that train, or those of the
            dataset before it was thinned here.

    Raises:
        InputError: an unknown set of templates, a sentence without exactly one `{}`, `tau` without `shots`, classes
            cut from fewer than two, or training images asked of a set for testing alone.
    """
    del allow_empty  # read where the LongTail is made; it stands here because every dataset accepts it
    draw_seed = draw_seed or 0
    if tau < 1 and shots is None:
        raise InputError(
            f"`tau` {tau:g} thins a few-shot set and needs `shots`, such as 16; for others there is `tail`"
        )
    if split_by == "dataset" and dataset.group_counts is None and not dataset.test_only:
        dataset = replace(dataset, group_counts=dataset.counts)
    if tail is not None:
        dataset = with_tail(dataset, tail, tail_factor, tail_largest, tail_order, draw_seed)
    if shots is not None:
        dataset = few_shot(dataset, shots, draw_seed)
    if classes != "all":
        dataset = base_novel(dataset)[0 if classes == "base" else 1]
    if tau < 1 and shots is not None and classes != "novel":
        dataset = with_decay(dataset, shots, tau, draw_seed)
    if test_shift is not None:
        dataset = with_shifted_test(dataset, test_shift, test_shift_factor, draw_seed)
    return dataset if templates == "dataset" else dataset.with_templates(resolve_templates(templates))


def resolve_templates(templates: str | list[str]) -> tuple[str, ...]:
    if isinstance(templates, list):
        for sentence in templates:
            if sentence.count("{}") != 1 or sentence.count("{") != 1:
                raise InputError(f"`templates` must hold sentences with one {{}} for the class name, got {sentence!r}")
        if not templates:
            raise InputError("`templates` must hold at least one sentence, got an empty list")
        return tuple(templates)
    if templates == "simple":
        return SIMPLE_TEMPLATES
    if templates == "openai":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    raise InputError(f"`templates` must be 'dataset', 'simple', 'openai' or a list of sentences, got {templates!r}")


def drawn(section: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A recipe's data section as the run of that seed draws it."""
    return dict(section) | ({"draw_seed": seed} if section["draw_seed"] is None else {})


def create_dataset(name: str, **settings: Any) -> Dataset:
    """A dataset by its recipe name.

    Raises:
        InputError: unknown name, missing files, unreadable images, a single class.
    """
    catalogue.load_plugins()
    own, shared = _split(settings)
    dataset: Dataset = catalogue.DATASETS.get(name).load()(**own)
    if dataset.num_classes < 2:
        raise InputError(
            f"dataset '{dataset.name}' must have at least 2 classes to tell apart, got {dataset.num_classes} "
            f"({dataset.class_names[0]!r}); is `root` the folder above the class folders?"
        )
    return prepare(dataset, **shared)


_kept: ContextVar[dict[str, str] | None] = ContextVar("_kept", default=None)


@contextmanager
def identities_kept() -> Iterator[None]:
    """While this lasts, files are listed once for each data section: the hundreds of runs of a study share them."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def dataset_identity(section: Mapping[str, Any]) -> str:
    """What a recipe's data are, without reading the images: the settings, and for files what the reader found."""
    kept = _kept.get()
    if kept is None:
        return _identity(section)
    key = f"{sorted(section.items(), key=str)}"
    if key not in kept:
        kept[key] = _identity(section)
    return kept[key]


def _identity(section: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in section.items() if key != "name"}
    own, _ = _split(settings)
    build = catalogue.DATASETS.get(section["name"]).load()
    identify = getattr(build, "identity", None)
    found = identify(**own) if identify else ""
    return hashlib.sha256(f"{section['name']}{sorted(settings.items(), key=str)}{found}".encode()).hexdigest()


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = {key: settings[key] for key in settings_of(prepare) if key in settings}
    return {key: value for key, value in settings.items() if key not in shared}, shared
