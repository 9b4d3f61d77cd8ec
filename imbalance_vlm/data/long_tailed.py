"""The long-tailed benchmarks: ImageNet-LT, Places-LT and iNaturalist 2018, from their public list files.

root/train/n01440764/....JPEG   root/val/n01440764/....JPEG        ImageNet-LT
root/train/airfield/....jpg     root/val/airfield/....jpg          Places-LT
root/train_val2018/Plantae/7291/....jpg                            iNaturalist 2018

The lists lie in root, in root/lists or in `lists`. Classes are named after the folders of their images, because
different lists of one benchmark number the classes differently.

[0] Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019 (ImageNet-LT, Places-LT)
[1] Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from imbalance_vlm.data.class_names import distinct, of_wnids, spoken
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.lists import (
    FORMAT,
    LabelledPaths,
    check_labels,
    file_splits,
    files_identity,
    find,
    folders_identity,
    list_folders,
    read_existing,
    read_list,
    text_of,
)
from imbalance_vlm.data.reader import Listing, OnError
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded, parse_json

OLTR = "the ImageNet-LT release of Liu et al., Large-Scale Long-Tailed Recognition in an Open World (OLTR)"
OLTR_PLACES = OLTR.replace("ImageNet", "Places")
DECOUPLING = (
    "the code of Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition "
    "(made from the train2018 and val2018 annotations of the iNaturalist 2018 competition)"
)
INAT = "the iNaturalist 2018 competition (categories.json, with the scientific names)"
SpeciesNames = Literal["scientific", "common", "taxonomic"]
Naming = Callable[[Sequence[str]], tuple[str, ...]]
"""Class names from the folders that the images of each label lie in."""


@dataclass(frozen=True)
class Benchmark:
    """The list files of a benchmark, by split, and where they come from."""

    lists: Mapping[str, str]
    folder: str
    example: str
    origin: str

    def files(self, root: Path, lists: Path | None) -> dict[str, Path]:
        """The list file of each split."""
        folders = list_folders(root, lists, self.folder, self.folder.lower())
        content = f"{FORMAT}, such as `{self.example}`"
        return {split: find(name, folders, content, self.origin) for split, name in self.lists.items()}

    def listing(self, name: str, root: Path, lists: Path | None, naming: Naming) -> Listing:
        """The listing, with classes named by `naming` from the folders that the images of each label lie in."""
        files = self.files(root, lists)
        lines = {split: read_list(file) for split, file in files.items()}
        by_file = {files[split]: lines[split] for split in files}
        class_names = naming(class_folders(by_file, check_labels(by_file)))
        return Listing(name=name, class_names=class_names, splits=file_splits(root, lines))

    def identity(self, root: Path, lists: Path | None, *more: Path | None) -> str:
        """Hash of the lists and of `more` small files, and of the folders that the images lie in."""
        files = self.files(root, lists)
        paths = [path for file in files.values() for path in read_list(file).paths]
        return files_identity([*files.values(), *more]) + folders_identity(root, paths)


IMAGENET_LT = Benchmark(
    {"train": "ImageNet_LT_train.txt", "val": "ImageNet_LT_val.txt", "test": "ImageNet_LT_test.txt"},
    "ImageNet_LT",
    "train/n01440764/n01440764_762.JPEG 0",
    OLTR,
)
PLACES_LT = Benchmark(
    {"train": "Places_LT_train.txt", "val": "Places_LT_val.txt", "test": "Places_LT_test.txt"},
    "Places_LT",
    "train/airfield/00004851.jpg 0",
    OLTR_PLACES,
)
INAT2018 = Benchmark(
    {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    "iNaturalist18",
    "train_val2018/Plantae/7291/9f8ecb39e5f767e39e9b28e34488f179.jpg 7291",
    DECOUPLING,
)


@dataclass(frozen=True, kw_only=True)
class ImageNetLTReader:
    """ImageNet-LT: 1000 classes, 1280 to 5 training images; its test set is the validation set of ImageNet.

    Args:
        root: the folder of ImageNet, with train/<wnid>/ and val/<wnid>/.
        lists: the folder of ImageNet_LT_{train,val,test}.txt; null searches in root and root/lists.
        class_names: a file with one `<wnid> <name>` per line, instead of the names that CLIP was tested with.
        on_error: what missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and
            the result counts them.
    """

    root: Path
    lists: Path | None = None
    class_names: Path | None = None
    on_error: OnError = "raise"

    def list(self) -> Listing:
        naming = partial(of_wnids, file=self.class_names)
        return IMAGENET_LT.listing("imagenet_lt", expanded(self.root), self.lists, naming)

    def read(self) -> Dataset:
        """The dataset; raises InputError for lists that are missing or wrong, and for missing images."""
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the lists, the class names and the image folders."""
        return IMAGENET_LT.identity(expanded(self.root), self.lists, self.class_names)


@dataclass(frozen=True, kw_only=True)
class PlacesLTReader:
    """Places-LT: 365 kinds of places, 4980 to 5 training images.

    Args:
        root: the folder of Places365, with train/<place>/ and val/<place>/.
        lists: the folder of Places_LT_{train,val,test}.txt; null searches in root and root/lists.
        on_error: what missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and
            the result counts them.
    """

    root: Path
    lists: Path | None = None
    on_error: OnError = "raise"

    def list(self) -> Listing:
        return PLACES_LT.listing("places_lt", expanded(self.root), self.lists, place_names)

    def read(self) -> Dataset:
        """The dataset; raises InputError for lists that are missing or wrong, and for missing images."""
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the lists and the image folders."""
        return PLACES_LT.identity(expanded(self.root), self.lists)


@dataclass(frozen=True, kw_only=True)
class INat2018Reader:
    """iNaturalist 2018: 8142 species, 1000 to 2 training images, 3 test images each (the official validation set).

    Args:
        root: the folder that holds train_val2018/.
        lists: the folder of iNaturalist18_{train,val}.txt and categories.json; null searches in root and root/lists.
        names: what a species is called: by its "scientific" name, by its "common" one (where categories.json has a
            `common_name`, else the scientific one), or "taxonomic", its scientific name and family: "a photo of a
            Bubo bubo, a species of Strigidae."
        on_error: what missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and
            the result counts them.
    """

    root: Path
    lists: Path | None = None
    names: SpeciesNames = "scientific"
    on_error: OnError = "raise"

    def list(self) -> Listing:
        root = expanded(self.root)
        naming = partial(species_names, categories(root, self.lists), names=self.names)
        return INAT2018.listing("inat2018", root, self.lists, naming)

    def read(self) -> Dataset:
        """The dataset; raises InputError for lists that are missing or wrong, and for missing images."""
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the lists, the taxa and the image folders."""
        root = expanded(self.root)
        return INAT2018.identity(root, self.lists, categories(root, self.lists))


def place_names(folders: Sequence[str]) -> tuple[str, ...]:
    """(C,) names of places by their folders."""
    return distinct([spoken(folder.replace("-", " ")) for folder in folders], folders)


def categories(root: Path, lists: Path | None) -> Path:
    """The file with iNaturalist's taxa."""
    folders = list_folders(root, lists, INAT2018.folder, INAT2018.folder.lower())
    content = "a list of taxa in JSON, each with id, name, genus, family, order, class, phylum and kingdom"
    return find(["categories.json", "iNaturalist18_categories.json"], folders, content, INAT)


_TEXT = str | None
_TAXON = {"id": int | str, "name": _TEXT, "family": _TEXT, "common_name": _TEXT}


def species_names(file: Path, identifiers: Sequence[str], names: SpeciesNames) -> tuple[str, ...]:
    """(C,) names of the taxa with these ids.

    Raises:
        InputError: the file is no list of taxa, or lacks one of the ids, its name or its family.
    """
    taxa = {str(taxon["id"]): taxon for taxon in parse_json(text_of(file), file, [_TAXON], "it must list taxa")}
    if names == "common" and not any(taxon.get("common_name") for taxon in taxa.values()):
        raise InputError(
            f"`names` common needs a `common_name` for the taxa of {file}, and none has one (nor has the "
            "public file); add them, or set `names` to scientific or taxonomic"
        )
    class_names = []
    for identifier in identifiers:
        taxon = taxa.get(identifier, {})
        name, family = taxon.get("name", ""), taxon.get("family", "")
        if not name or (names == "taxonomic" and not family):
            missing = "family" if name else "name" if taxon else "taxon"
            raise InputError(
                f"{file} must hold every taxon of the lists with its name and family, got no {missing} for id "
                f"{identifier!r}; the folder of an image is named by that id, as in train_val2018/Plantae/7291/...jpg"
            )
        if names == "taxonomic":
            name = f"{name}, a species of {family}"
        elif names == "common":
            name = taxon.get("common_name") or name
        class_names.append(name)
    scientific = {key: f"{name} ({taxa[key]['name']})" for key, name in zip(identifiers, class_names, strict=True)}
    return distinct(class_names, identifiers, scientific if names == "common" else None)


def class_folders(lists: Mapping[Path, LabelledPaths], num_classes: int) -> list[str]:
    """(C,) the folder in which the images of each label lie.

    Raises:
        InputError: images of one label in different folders, or of one folder under different labels: these lists do
            not belong together.
    """
    folders: dict[int, str] = {}
    labels: dict[str, int] = {}
    for file, lines in lists.items():
        for path, label in zip(lines.paths, lines.labels.tolist(), strict=True):
            folder = path.rpartition("/")[0].rpartition("/")[2]
            if folders.setdefault(label, folder) != folder or labels.setdefault(folder, label) != label:
                before = (
                    f"label {label} is {folders[label]!r}"
                    if folders[label] != folder
                    else f"{folder!r} has label {labels[folder]}"
                )
                raise InputError(
                    f"{file}: `{path} {label}` does not go with the other lines, where {before}; a class has one "
                    "folder and one label in all lists: take all of them from one release"
                )
    return [folders[label] for label in range(num_classes)]
