"""The images that `data verify` and `data show` work on: those of a recipe, a folder, a table or an archive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.components import catalogue
from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.dataset import IMAGE_KINDS, Dataset, FileImages, Images
from imbalance_vlm.data.prepare import list_dataset
from imbalance_vlm.data.reader import Listing
from imbalance_vlm.data.state_table import file_state
from imbalance_vlm.data.table import TABLE_SUFFIXES
from imbalance_vlm.data.walk import describe_passed_over
from imbalance_vlm.data.webdataset import TarImages
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded
from imbalance_vlm.recipe.load import list_recipes, load
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.verification.archives import ENDINGS, is_archive, read_archive, structure
from imbalance_vlm.verification.findings import Finding
from imbalance_vlm.verification.inspection import Inspection, Location

WHOLE = "all"
"""The split of images that their source does not divide."""
ORDER = ("train", WHOLE, "val", "test")


@dataclass(frozen=True)
class ListedImage:
    """One line of a list, one file of a folder or one member of an archive.

    Args:
        name: its name in the dataset.
        split: "train", "val", "test", or "all".
        label: its class, -1 for none.
        container: the folder or archive, by which inspections are cached.
        location: where its bytes lie; None for an image in memory or read from a stream.
        state: changes with its content; "" where the file system must be asked.
        inspection: the result where it is known without reading the image.
        memory: the images of its split and its row there, for an image without location.
    """

    name: str
    split: str
    label: int
    container: str = ""
    location: Location | None = None
    state: str = ""
    inspection: Inspection | None = None
    memory: tuple[Images, int] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Collection:
    """The images of a dataset in the order of `ORDER`, and the findings made while listing them.

    Args:
        name: of the dataset.
        source: as the user named it.
        class_names: (C,) names.
        images: all that are listed, whether or not they exist.
        findings: problems of the listing.
        notes: sentences for the report.
        roots: the user's folders, in which nothing may be written.
        group_counts: (C,) the counts that make the groups, where they are not those of "train".
        section: the recipe's data section, for a recipe.
        recipe: the complete recipe, where one with an encoder is given.
        dataset: the dataset as listed, with images that may be unreadable; None for an archive.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    images: tuple[ListedImage, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    roots: tuple[Path, ...] = ()
    group_counts: NDArray[np.int64] | None = None
    section: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    dataset: Dataset | None = None

    @property
    def splits(self) -> list[str]:
        """The splits that have images, in the order of `ORDER`."""
        present = {image.split for image in self.images}
        return [split for split in ORDER if split in present]

    @property
    def main(self) -> str:
        """The split whose counts make the long tail."""
        return self.splits[0]

    def counts(self, split: str) -> NDArray[np.int64]:
        """(C,) number of images of each class."""
        labels = [image.label for image in self.images if image.split == split and image.label >= 0]
        return np.bincount(np.array(labels, np.int64), minlength=len(self.class_names))

    def class_name(self, image: ListedImage) -> str:
        """The name of an image's class, "" for an image without one."""
        return self.class_names[image.label] if image.label >= 0 else ""

    def finding(self, image: ListedImage, kind: str, other: str = "", detail: str = "") -> Finding:
        """A finding about one image."""
        return Finding(kind, image.split, self.class_name(image), image.name, other, detail)


def collect(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Collection:
    """List the images of a recipe, a folder, a table or an archive; none of them is opened.

    Args:
        source: the name, file or mapping of a recipe, whose `data` section is used; or the name of a dataset, whose
            settings are overrides (`data.root=...`); or the path of a folder of images, a table (.csv, .tsv, .txt,
            .parquet) or an archive (.zip, .tar, .tar.gz, ...).
        overrides: `key.path=value` of the recipe; for a folder or a table, settings of its reader.

    Raises:
        InputError: nothing has that name, or no reader recognises it.
    """
    if isinstance(source, Mapping):
        return _of_recipe(source, overrides, "recipe")
    text, path = str(source), expanded(source)
    if path.is_dir():
        return _of_path(path, text, overrides)
    if path.is_file() and is_archive(path):
        if overrides:
            raise InputError(f"an archive has no settings, got {overrides[0]!r}")
        return _of_archive(path, text)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return _of_path(path, text, overrides)
    if text in catalogue.DATASETS:
        return _of_recipe({"data": {"name": text}}, overrides, text)
    if not path.exists() and (path.suffix.lower() in TABLE_SUFFIXES or is_archive(path)):
        raise InputError(f"{text!r}: no such file")
    yaml = path.suffix.lower() in (".yaml", ".yml")
    if not path.exists() and not yaml and os.sep in text and text.removeprefix("recipes/") not in list_recipes():
        raise InputError(
            f"{text!r} is neither a folder, nor a file, nor the name of a packaged recipe (`imbalance-vlm ls recipes`)"
        )
    if path.is_file() and not yaml:
        raise InputError(
            f"{text} must be a recipe (.yaml), a folder of class folders, a table ({', '.join(TABLE_SUFFIXES)}) or an "
            f"archive ({', '.join(ENDINGS)})"
        )
    return _of_recipe(text, overrides, text)


# -- recipes ---------------------------------------------------------------------------------------------------------
def _of_recipe(recipe: str | Mapping[str, Any], overrides: Sequence[str], source: str) -> Collection:
    tree = load(recipe, overrides).tree
    data_only = "data" in tree and not {"encoder", "tuning", "head"} & set(tree)
    recipes = [_completed(tree)] if data_only else plan(recipe, overrides).recipes
    sections = {str(sorted(recipe["data"].items(), key=str)) for recipe in recipes}
    if len(sections) > 1:
        raise InputError(
            f"{source} is a study of {len(sections)} different data sections; verify one, by giving what they differ "
            "in as data.key=value, or by naming a recipe with that section"
        )
    section = recipes[0]["data"]
    listing, dataset = list_dataset(section)
    collection = _of_dataset(source, listing, dataset, section)
    return replace(collection, section=section, recipe=None if data_only else recipes[0])


def _of_dataset(source: str, listing: Listing, dataset: Dataset, section: Mapping[str, Any]) -> Collection:
    images = listed_images(dataset)
    return Collection(
        dataset.name,
        source,
        dataset.class_names,
        images,
        findings=tuple(
            Finding("empty_class", path=folder, detail="a class folder without images")
            for folder in listing.empty_folders
        ),
        notes=tuple(filter(None, [describe_passed_over(listing.passed_over), *listing.notes])),
        roots=_roots(section, images),
        group_counts=dataset.group_counts,
        dataset=dataset,
    )


def _roots(section: Mapping[str, Any], images: Sequence[ListedImage]) -> tuple[Path, ...]:
    """The user's folders of a data section: those that it names, or for a table the one that holds all its images."""
    named = tuple(expanded(section[key]) for key in ("root", "lists") if section.get(key))
    if named or not section.get("file"):
        return named
    folders = {os.path.dirname(os.path.abspath(image.location.path)) for image in images if image.location}
    return (Path(os.path.commonpath(folders)),) if folders else ()


def listed_images(dataset: Dataset) -> tuple[ListedImage, ...]:
    """The images of a dataset, split by split."""
    splits = sorted(dataset.splits, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return tuple(
        image
        for split in splits
        for image in _images_of(dataset.splits[split].images, dataset.splits[split].labels.tolist(), split)
    )


def _images_of(images: Images, labels: Sequence[int], split: str) -> list[ListedImage]:
    if isinstance(images, FileImages):
        container, root = str(images.root.resolve()), str(images.root)
        return [
            ListedImage(path, split, label, container, Location(os.path.join(root, path)))
            for path, label in zip(images.paths, labels, strict=True)
        ]
    if isinstance(images, TarImages):
        states = [file_state(shard.stat()) for shard in images.shards]
        containers = [str(shard.resolve()) for shard in images.shards]
        return [
            ListedImage(
                name,
                split,
                label,
                containers[shard],
                Location(containers[shard], start, length),
                f"{states[shard]} {start}",
            )
            for name, label, (shard, start, length) in zip(images.names, labels, images.places.tolist(), strict=True)
        ]
    return [ListedImage(images.name(row), split, label, memory=(images, row)) for row, label in enumerate(labels)]


# -- paths -----------------------------------------------------------------------------------------------------------
def _of_path(path: Path, source: str, overrides: Sequence[str]) -> Collection:
    """A folder or a table through its reader; images that the source does not divide stay together."""
    full = [text if text.startswith(("data.", "encoder.", "encoder=")) else f"data.{text}" for text in overrides]
    recipe = _completed({"data": section_for(path)}, full)
    listing, dataset = list_dataset(recipe["data"], together=True)
    collection = _of_dataset(source, listing, dataset, recipe["data"])
    notes = []
    if listing.undivided:
        images = tuple(replace(image, split=WHOLE) for image in collection.images if image.split == "train")
        collection = replace(collection, images=images, group_counts=None)
        notes.append(
            "nothing says which images are for testing: all are counted together, but a recipe would set some aside"
        )
    with_encoder = any(text.startswith("encoder") for text in full)
    return replace(collection, notes=(*notes, *collection.notes), recipe=recipe if with_encoder else None)


def section_for(path: Path) -> dict[str, Any]:
    """The data section that reads a folder or a file, by the reader that recognises it.

    Of several, the one registered last is taken: the catalogue lists the most general reader first.

    Raises:
        InputError: no reader recognises it.
    """
    catalogue.load_plugins()
    for entry in reversed(list(catalogue.DATASETS)):
        settings_for = getattr(entry.load(), "settings_for", None)
        settings = settings_for(path) if settings_for else None
        if settings is not None:
            return {"name": entry.name, **settings}
    raise InputError(f"{path} is of no form that a dataset reader recognises; name it in the data section of a recipe")


def _completed(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A complete recipe around a data section, so that the section is checked like any other."""
    other_sections = {"name": "data", "encoder": {"name": "mini-clip"}, "tuning": "zero_shot", "head": "text"}
    return plan({**other_sections, **tree}, list(overrides)).recipes[0]


# -- archives --------------------------------------------------------------------------------------------------------
def _of_archive(file: Path, source: str) -> Collection:
    archive = read_archive(file)
    if not archive.members:
        problems = "; ".join(f"{finding.kind}: {finding.path} ({finding.detail})" for finding in archive.findings[:3])
        raise InputError(f"{source} must hold images ({IMAGE_KINDS}), and holds none{'; ' * bool(problems)}{problems}")
    places = structure([member.name for member in archive.members])
    classes = sorted({folder for _, folder in places if folder})
    label_of = {name: label for label, name in enumerate(classes)}
    container = str(file.resolve())
    images = [
        ListedImage(
            member.name,
            split or WHOLE,
            label_of.get(folder, -1),
            container,
            member.location,
            member.state,
            member.inspection,
        )
        for member, (split, folder) in zip(archive.members, places, strict=True)
    ]
    loose = [image.name for image in images if image.label < 0]
    is_shard = not classes and file.suffix.lower() == ".tar"
    unplaced = loose if classes else [] if is_shard else [file.name]
    notes = ["the archive was read in place, without unpacking it"]
    if archive.other_files:
        notes.append(f"files in it whose names are not those of images: {archive.other_files:,}")
    if not classes:
        notes.append(
            f"no image in it lies in a class folder; a WebDataset shard is read with its folder: {file.parent}"
        )
    return Collection(
        file.name.split(".")[0],
        source,
        tuple(spoken(name) for name in classes),
        tuple(sorted(images, key=lambda image: ORDER.index(image.split))),
        findings=(
            *archive.findings,
            *(Finding("no_class", path=name, detail="outside of all class folders") for name in unplaced),
        ),
        notes=tuple(notes),
    )
