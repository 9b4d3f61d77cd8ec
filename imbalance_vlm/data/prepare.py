"""Makes datasets: a reader by its recipe name, and the protocol steps that every dataset accepts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Count, Part, Seed
from imbalance_vlm.components.registry import Section, offer
from imbalance_vlm.components.settings import checked_settings, settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.reader import Listing, Reader
from imbalance_vlm.data.subsets import base_novel, few_shot, with_decay
from imbalance_vlm.data.tails import Factor, Order, Shift, Tail, with_shifted_test, with_tail
from imbalance_vlm.data.walk import describe_passed_over
from imbalance_vlm.errors import InputError

SIMPLE_TEMPLATES = ("a photo of a {}.",)


# -- datasets by name ------------------------------------------------------------------------------------------------
def create_dataset(name: str, **settings: Any) -> Dataset:
    """A dataset by its recipe name.

    Args:
        name: an entry of the catalogue's datasets.
        **settings: of its reader, and those of `apply_protocol`.

    Raises:
        InputError: an unknown name or setting, missing files, unreadable images, a single class.
    """
    catalogue.load_plugins()
    allowed = catalogue.DATASETS.get(name).settings() | settings_of(apply_protocol)
    section = {"name": name, **checked_settings(f"dataset '{name}'", allowed, settings)}
    return _protocol_of(section, make_reader(section).read())


def summary(dataset: Dataset) -> str:
    """What became of all images and other files of the source: those used, left out and passed over."""
    parts = [f"{dataset.num_images:,} images of {dataset.num_classes:,} classes used"]
    parts += [f"{dataset.left_out:,} left out by the protocol"] if dataset.left_out else []
    parts += [f"{len(dataset.skipped):,} skipped"] if dataset.skipped else []
    parts += [describe_passed_over(dataset.passed_over)] if dataset.passed_over else []
    return f"{dataset.name}: {'; '.join(parts)}"


def make_reader(section: Section) -> Reader:
    """The reader of a recipe's data section; its protocol settings are ignored.

    Raises:
        InputError: an unknown dataset, or a component that is no reader.
    """
    catalogue.load_plugins()
    reader_section = {key: value for key, value in section.items() if key not in settings_of(apply_protocol)}
    reader: Reader = catalogue.DATASETS.make(reader_section, offer(name=section["name"]))
    lacking = [f"{method}()" for method in ("list", "read", "identity") if not callable(getattr(reader, method, None))]
    if lacking:
        raise InputError(
            f"the reader of dataset '{section['name']}' must have the methods list(), read() and identity(), but "
            f"{type(reader).__name__} lacks {' and '.join(lacking)}; without them a run would not notice changed files"
        )
    return reader


def list_dataset(section: Section, *, together: bool = False) -> tuple[Listing, Dataset]:
    """A dataset as its source lists it, and the listing itself: no image is opened or checked for existence.

    A reader's `read` refuses a dataset that lacks images or holds images that cannot be decoded, which is right for
    training but not for a report on everything that is wrong with it.

    Args:
        section: a recipe's data section.
        together: whether images that the source does not divide stay together: "train" and "test" are then both all of
            them. Otherwise test images are drawn as for training.

    Raises:
        InputError: a source that cannot be listed, or a single class.
    """
    listing = make_reader(section).list()
    divided = listing
    if together and listing.undivided:
        images = listing.splits["train"]
        divided = replace(listing, splits={"train": images, "test": images}, undivided=None)
    return listing, _protocol_of(section, divided.dataset())


def dataset_identity(section: Section) -> str:
    """Hash of everything that decides a recipe's data: the settings, and the files as the reader identifies them.

    A setting at its default counts as one that is left out. No image is opened, but the files may be listed, which
    takes time for large folders: share the result.
    """
    allowed = catalogue.DATASETS.get(section["name"]).settings() | settings_of(apply_protocol)
    changed = {key: value for key, value in section.items() if key in allowed and not allowed[key].is_default(value)}
    settings = sorted(changed.items(), key=str)
    content = f"{section['name']}{settings}{make_reader(section).identity()}"
    return hashlib.sha256(content.encode()).hexdigest()


def with_draw_seed(section: Section, seed: int) -> dict[str, Any]:
    """A recipe's data section as a run with this seed draws it: `draw_seed: null` becomes the run's seed."""
    return dict(section) | ({"draw_seed": seed} if section["draw_seed"] is None else {})


def _protocol_of(section: Section, dataset: Dataset) -> Dataset:
    if dataset.num_classes < 2:
        raise InputError(
            f"dataset '{dataset.name}' must have at least 2 classes, got {dataset.num_classes} "
            f"({dataset.class_names[0]!r}); is `root` the folder above the class folders?"
        )
    used = apply_protocol(dataset, **{key: section[key] for key in settings_of(apply_protocol) if key in section})
    return replace(used, left_out=dataset.num_images - used.num_images)


# -- the protocol ----------------------------------------------------------------------------------------------------
def apply_protocol(
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
    draw_seed: Seed | None = 0,
    split_by: Literal["train", "dataset"] = "train",
) -> Dataset:
    """The dataset of a recipe's protocol. Steps are taken in the order of the arguments from `tail` to `test_shift`.

    Args:
        dataset: as its reader gives it.
        templates: "dataset" for the dataset's own, "simple" for "a photo of a {}.", "openai" for the 80 of CLIP's
            ImageNet ensemble (from open_clip), or a list of sentences with one `{}` each.
        allow_empty: accept classes without a training image (see `LongTail`).
        tail: thin the training images to a tail of this shape; null keeps them all.
        tail_factor: largest class over smallest of that tail.
        tail_largest: number of images of its head class; null for those of the largest class.
        tail_order: which classes are its head: the first labels, the largest, or a random order.
        shots: training images per class, drawn over all classes; as many for validation, but at most 4.
        classes: "base" for the first half of the classes, "novel" for the second, relabelled from 0.
        tau: with `shots`, smallest over largest training class, decaying from `shots` in a random order of the
            classes; novel classes keep all their shots.
        test_shift: thin the test images to a tail as in training ("forward"), its reverse ("backward") or equally many
            images per class ("uniform").
        test_shift_factor: largest test class over smallest.
        draw_seed: seed of all draws here. It does not depend on the run's seed, so that all seeds have the same
            images; null takes the run's seed, so that their spread includes that of the draw (0 outside of a run).
        split_by: whose counts make a class many, medium or few: those of the training images, or those of the dataset
            before it was thinned here.

    Raises:
        InputError: an unknown set of templates, a sentence without exactly one `{}`, `tau` without `shots`, base or
            novel classes of fewer than four classes, or a step on training images of a dataset for testing only.
    """
    draw_seed = draw_seed or 0
    if tau < 1 and shots is None:
        raise InputError(f"`tau` {tau:g} thins a few-shot dataset and needs `shots`, such as 16; for others use `tail`")
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
    if templates != "dataset":
        dataset = replace(dataset, templates=resolve_templates(templates))
    return dataset if dataset.allow_empty == allow_empty else replace(dataset, allow_empty=allow_empty)


def selecting_settings(section: Section) -> list[str]:
    """The protocol settings by which a data section takes other images or classes than its source has."""
    defaults: Mapping[str, Any] = {name: setting.default for name, setting in settings_of(apply_protocol).items()}
    steps = ("tail", "shots", "classes", "tau", "test_shift")
    return [step for step in steps if section.get(step, defaults[step]) != defaults[step]]


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
