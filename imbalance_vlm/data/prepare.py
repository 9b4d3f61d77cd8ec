"""Datasets by name, with the settings that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from imbalance_vlm import catalogue
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.errors import InputError

SIMPLE_TEMPLATES = ("a photo of a {}.",)


def prepare(dataset: Dataset, *, templates: str | list[str] = "dataset", allow_empty: bool = False) -> Dataset:
    """A dataset with the templates of the recipe.

    Args:
        dataset: as its reader gives it.
        templates: "dataset" for the dataset's own, "simple" for "a photo of a {}.", "openai" for the 80 of CLIP's
            ImageNet ensemble (from open_clip), or a list of sentences with one `{}` each.
        allow_empty: accept classes without a training image (see `LongTail`).

    Raises:
        InputError: an unknown set of templates, or a sentence without exactly one `{}`.
    """
    del allow_empty  # read where the LongTail is made; it stands here because every dataset accepts it
    if templates == "dataset":
        return dataset
    return dataset.with_templates(resolve_templates(templates))


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


def create_dataset(name: str, **settings: Any) -> Dataset:
    """A dataset by its recipe name.

    Raises:
        InputError: unknown name, missing files, unreadable images.
    """
    catalogue.load_plugins()
    own, shared = _split(settings)
    dataset: Dataset = prepare(catalogue.DATASETS.get(name).load()(**own), **shared)
    return dataset


def dataset_identity(section: Mapping[str, Any]) -> str:
    """What a recipe's data are, without reading the pictures: the settings, and for files what the reader found."""
    settings = {key: value for key, value in section.items() if key != "name"}
    own, _ = _split(settings)
    build = catalogue.DATASETS.get(section["name"]).load()
    identify = getattr(build, "identity", None)
    found = identify(**own) if identify else ""
    return hashlib.sha256(f"{section['name']}{sorted(settings.items(), key=str)}{found}".encode()).hexdigest()


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = {key: settings[key] for key in ("templates", "allow_empty") if key in settings}
    return {key: value for key, value in settings.items() if key not in shared}, shared
