"""What `data verify` and `data show` look at: the data of a recipe, a folder, a table or an archive, as one list."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.as_listed import as_listed
from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.dataset import Dataset, FileImages, Images
from imbalance_vlm.data.folder import SUFFIXES
from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.data.webdataset import TarImages
from imbalance_vlm.errors import InputError
from imbalance_vlm.recipe.load import list_recipes, load
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.verification.archives import ENDINGS, is_archive, read_archive, structure
from imbalance_vlm.verification.inspecting import Inspected, Place

WHOLE = "all"
"""The split of a path whose images nobody has divided."""
ORDER = ("train", WHOLE, "val", "test")
TABLES = (".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True)
class ListedImage:
    """One line of a list, one file of a folder or one member of an archive.

    Args:
        name: as the dataset calls it.
        split: "train", "val", "test", or "all".
        label: its class, -1 for none.
        home: names the folder or archive, for what is remembered of it.
        place: where its bytes lie; None for an image in memory.
        size: of its bytes, -1 where the file must be asked.
        stamp: changes with its content.
        told: what is known without reading it.
        memory: its split's images and its row there, where it has no place.
    """

    name: str
    split: str
    label: int
    home: str = ""
    place: Place | None = None
    size: int = -1
    stamp: int = 0
    told: Inspected | None = None
    memory: tuple[Images, int] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Collection:
    """Images in the order of `ORDER`, and what was found while listing them.

    Args:
        name: of the dataset.
        source: as the user named it.
        class_names: (C,) names.
        images: all that are listed, there or not.
        findings: (kind, name, detail).
        notes: sentences for the report.
        roots: the user's folders, in which nothing may be written.
        group_counts: (C,) the counts that make the groups, where they are not those of "train".
        section: the recipe's data section, for a recipe.
        recipe: the complete recipe, where there is one with an encoder.
        dataset: as its reader makes it, images that cannot be read among them; None for an archive.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    images: tuple[ListedImage, ...]
    findings: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    roots: tuple[Path, ...] = ()
    group_counts: NDArray[np.int64] | None = None
    section: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    dataset: Dataset | None = None

    @property
    def splits(self) -> list[str]:
        there = {image.split for image in self.images}
        return [split for split in ORDER if split in there]

    @property
    def main(self) -> str:
        """The split whose counts make the tail."""
        return self.splits[0]

    def counts(self, split: str) -> NDArray[np.int64]:
        """(C,) images of each class."""
        labels = [image.label for image in self.images if image.split == split and image.label >= 0]
        return np.bincount(np.array(labels, np.int64), minlength=len(self.class_names))


def collect(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Collection:
    """The images of a recipe, a folder, a table or an archive; none of them is opened.

    Args:
        source: the name, file or mapping of a recipe, of which the `data` section counts; or the path of a folder of
            class folders, of a table (.csv, .tsv, .txt, .parquet) or of an archive (.zip, .tar, .tar.gz, ...).
        overrides: `key.path=value` of the recipe; for a folder or a table, settings of its reader.

    Raises:
        InputError: nothing of that name, or nothing that a reader understands.
    """
    if isinstance(source, Mapping):
        return _of_recipe(source, overrides, "recipe")
    text, path = str(source), Path(source).expanduser()
    if path.is_dir():
        return _of_path(path, text, overrides)
    if path.is_file() and is_archive(path):
        if overrides:
            raise InputError(f"an archive has no settings, got {overrides[0]!r}")
        return _of_archive(path, text)
    if path.is_file() and path.suffix.lower() in TABLES:
        return _of_path(path, text, overrides)
    if not path.exists() and (path.suffix.lower() in TABLES or is_archive(path)):
        raise InputError(f"{text!r}: no such file")
    yaml = path.suffix.lower() in (".yaml", ".yml")
    if not path.exists() and not yaml and os.sep in text and text.removeprefix("recipes/") not in list_recipes():
        raise InputError(
            f"{text!r} is neither a folder, nor a file, nor the name of a packaged recipe (`imbalance-vlm ls recipes`)"
        )
    if path.is_file() and not yaml:
        raise InputError(
            f"{text} must be a recipe (.yaml), a folder of class folders, a table ({', '.join(TABLES)}) or an archive "
            f"({', '.join(ENDINGS)})"
        )
    return _of_recipe(text, overrides, text)


# -- recipes ---------------------------------------------------------------------------------------------------------
def _of_recipe(recipe: str | Mapping[str, Any], overrides: Sequence[str], source: str) -> Collection:
    loaded = load(recipe, overrides).tree
    alone = "data" in loaded and not {"encoder", "tuning", "head"} & set(loaded)
    recipes = [_complete(loaded)] if alone else plan(recipe, overrides).recipes
    sections = {str(sorted(one["data"].items(), key=str)) for one in recipes}
    if len(sections) > 1:
        raise InputError(
            f"{source} is a study of {len(sections)} different data sections; verify one, by giving what they differ "
            "in as data.key=value, or by naming a recipe with that section"
        )
    section = recipes[0]["data"]
    with as_listed():
        dataset = create_dataset(**section)
    images = listed_images(dataset)
    roots = _roots(section, images)
    return Collection(
        dataset.name,
        source,
        dataset.class_names,
        images,
        findings=tuple(_empty_folders(roots[0])) if section["name"] == "folder" else (),
        roots=roots,
        group_counts=dataset.group_counts,
        section=section,
        recipe=None if alone else recipes[0],
        dataset=dataset,
    )


def _roots(section: Mapping[str, Any], images: Sequence[ListedImage]) -> tuple[Path, ...]:
    """The user's folders of a data section: those that it names, or for a table the one that holds all its images."""
    named = tuple(Path(str(section[key])).expanduser() for key in ("root", "lists") if section.get(key))
    if named or not section.get("file"):
        return named
    folders = {os.path.dirname(os.path.abspath(one.place.path)) for one in images if one.place}
    return (Path(os.path.commonpath(folders)),) if folders else ()


def listed_images(dataset: Dataset) -> tuple[ListedImage, ...]:
    """The images of a dataset, split by split."""
    found: list[ListedImage] = []
    for split in sorted(dataset.splits, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        found += _of_images(dataset.splits[split].images, dataset.splits[split].labels.tolist(), split)
    return tuple(found)


def _of_images(images: Images, labels: Sequence[int], split: str) -> list[ListedImage]:
    if isinstance(images, FileImages):
        home, root = str(images.root.resolve()), str(images.root)
        return [
            ListedImage(path, split, label, home, Place(os.path.join(root, path)))
            for path, label in zip(images.paths, labels, strict=True)
        ]
    if isinstance(images, TarImages):
        stamps = [shard.stat().st_mtime_ns for shard in images.shards]
        homes = [str(shard.resolve()) for shard in images.shards]
        return [
            ListedImage(
                name, split, label, homes[shard], Place(homes[shard], start, length), length, stamps[shard] ^ start
            )
            for name, label, (shard, start, length) in zip(images.names, labels, images.places.tolist(), strict=True)
        ]
    return [ListedImage(images.name(row), split, label, memory=(images, row)) for row, label in enumerate(labels)]


# -- paths -----------------------------------------------------------------------------------------------------------
def _of_path(path: Path, source: str, overrides: Sequence[str]) -> Collection:
    """A folder or a table through its reader; a set that nobody has divided stays whole."""
    kind = "table" if path.is_file() else _kind_of(path)
    section = {"name": kind, "file" if path.is_file() else "root": str(path)}
    full = [text if text.startswith(("data.", "encoder.", "encoder=")) else f"data.{text}" for text in overrides]
    recipe = _complete({"data": section}, full)
    with as_listed(whole=True) as listing:
        dataset = create_dataset(**recipe["data"])
    images = listed_images(dataset)
    notes: list[str] = []
    if listing.drawn:
        images = tuple(replace(one, split=WHOLE) for one in images if one.split == "train")
        dataset = replace(dataset, splits={"train": dataset.splits["train"], "test": dataset.splits["train"]})
        notes.append("nothing says which images are for testing: all are counted together, as a recipe would find them")
    if kind == "folder" and (others := _others(path)):
        notes.append(f"files that are no images by their names are passed over: {_shown(others)}")
    return Collection(
        dataset.name,
        source,
        dataset.class_names,
        images,
        findings=tuple(_empty_folders(path)) if kind == "folder" else (),
        notes=tuple(notes),
        roots=_roots(recipe["data"], images),
        group_counts=None if listing.drawn else dataset.group_counts,
        recipe=recipe if any(text.startswith("encoder") for text in full) else None,
        dataset=dataset,
    )


def _complete(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe around a data section alone, so that it is checked like any other."""
    around = {"name": "data", "encoder": {"name": "mini-clip"}, "tuning": "zero_shot", "head": "text"}
    return plan({**around, **tree}, list(overrides)).recipes[0]


def _kind_of(folder: Path) -> str:
    """Which reader a folder is for."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return "hf_disk"
    shards = [*folder.glob("*.tar"), *folder.glob("train/*.tar"), *folder.glob("test/*.tar")]
    return "webdataset" if shards else "folder"


def _others(root: Path) -> Counter[str]:
    """How many files of which endings a folder holds that are no images by their names."""
    found: Counter[str] = Counter()
    for _, _, names in os.walk(root):
        found.update(Path(name).suffix.lower() or "none" for name in names if not _by_name(name))
    return found


def _by_name(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _shown(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(5))


def _empty_folders(root: Path) -> list[tuple[str, str, str]]:
    """Class folders without an image, which a reader takes for no class at all."""
    bases = [root / split for split in ("train", "val", "test") if (root / split).is_dir()]
    if not ((root / "train").is_dir() and (root / "test").is_dir()):
        bases = [root]
    found = []
    for base in bases:
        for entry in sorted(os.scandir(base), key=lambda one: one.name):
            if not entry.is_dir() or entry.name.startswith("."):
                continue
            if not any(_by_name(name) for _, _, names in os.walk(entry.path) for name in names):
                place = Path(entry.path).relative_to(root).as_posix()
                found.append(("empty_class", place, "a class folder without images"))
    return found


# -- archives --------------------------------------------------------------------------------------------------------
def _of_archive(file: Path, source: str) -> Collection:
    archive = read_archive(file)
    if not archive.members:
        told = "; ".join(f"{kind}: {name} ({said})" for kind, name, said in archive.findings[:3])
        raise InputError(
            f"{source} must hold images ({', '.join(sorted(SUFFIXES))}), found none{'; ' * bool(told)}{told}"
        )
    placed = structure([member.name for member in archive.members])
    classes = sorted({folder for _, folder in placed if folder})
    label_of = {name: label for label, name in enumerate(classes)}
    loose = [member.name for member, (_, folder) in zip(archive.members, placed, strict=True) if not folder]
    home = str(file.resolve())
    images = [
        ListedImage(
            member.name, split or WHOLE, label_of.get(folder, -1), home, member.place, member.size, member.stamp,
            member.inspected,
        )
        for member, (split, folder) in zip(archive.members, placed, strict=True)
    ]  # fmt: skip
    notes = ["the archive was read in place, and not unpacked"]
    if archive.others:
        notes.append(f"files in it that are no images by their names: {archive.others:,}")
    if not classes:
        notes.append(
            f"no image in it lies in a class folder; a WebDataset shard is read with its folder: {file.parent}"
        )
    return Collection(
        file.name.split(".")[0],
        source,
        tuple(spoken(name) for name in classes),
        tuple(sorted(images, key=lambda one: ORDER.index(one.split))),
        findings=(*archive.findings, *(("no_class", name, "lies in no class folder") for name in loose)),
        notes=tuple(notes),
    )
