"""The eleven datasets of few-shot and base-to-novel papers, and the four variants of ImageNet for testing only.

`root` is the folder of all datasets, or the folder of one:

    root/caltech-101/101_ObjectCategories/<class>/....jpg      root/caltech-101/split_zhou_Caltech101.json
    root/imagenet/images/{train,val}/<wnid>/....JPEG           no split file: the folders are the splits
    root/fgvc_aircraft/images/....jpg                          its own variants.txt, images_variant_{train,val,test}.txt
    root/imagenet-sketch/images/<wnid>/....JPEG                for testing only, as are the other variants

[0] Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022: splits, folders and templates
[1] https://github.com/KaiyangZhou/CoOp, datasets/
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbalance_vlm.data.class_names import imagenet_names, of_wnids, spoken
from imbalance_vlm.data.dataset import IMAGE_KINDS, SPLITS, Dataset, FileImages, Split, has_image_name
from imbalance_vlm.data.labels import label_number
from imbalance_vlm.data.lists import (
    LabelledPaths,
    check_labels,
    file_splits,
    files_identity,
    find,
    folders_identity,
    leads_out,
    read_existing,
    text_of,
)
from imbalance_vlm.data.reader import Listing, OnError
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded, parse_json
from imbalance_vlm.values import written

SPLIT_FILE = "train, val and test in JSON, each a list of [relative path, label, class name]"
COOP = "the code of CoOp (Zhou et al., Learning to Prompt for Vision-Language Models): its page on datasets links it"
AIRCRAFT = "the FGVC-Aircraft archive of Maji et al. (fgvc-aircraft-2013b/data)"


@dataclass(frozen=True)
class SplitFile:
    """A dataset with a split file.

    Args:
        folder: its own folder.
        images: the folder in it that the paths of the split file are relative to.
        split: the name in split_zhou_<name>.json.
        template: the sentence for a class name.
    """

    folder: str
    images: str
    split: str
    template: str = "a photo of a {}."


FEW_SHOT = {
    "caltech101": SplitFile("caltech-101", "101_ObjectCategories", "Caltech101"),
    "oxford_pets": SplitFile("oxford_pets", "images", "OxfordPets", "a photo of a {}, a type of pet."),
    "stanford_cars": SplitFile("stanford_cars", "", "StanfordCars"),
    "oxford_flowers": SplitFile("oxford_flowers", "jpg", "OxfordFlowers", "a photo of a {}, a type of flower."),
    "food101": SplitFile("food-101", "images", "Food101", "a photo of {}, a type of food."),
    "sun397": SplitFile("sun397", "SUN397", "SUN397"),
    "dtd": SplitFile("dtd", "images", "DescribableTextures", "{} texture."),
    "eurosat": SplitFile("eurosat", "2750", "EuroSAT", "a centered satellite photo of {}."),
    "ucf101": SplitFile("ucf101", "UCF-101-midframes", "UCF101", "a photo of a person doing {}."),
}
VARIANTS = {
    "imagenet_v2": ("imagenetv2", "imagenetv2-matched-frequency-format-val"),
    "imagenet_sketch": ("imagenet-sketch", "images"),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": ("imagenet-rendition", "imagenet-r"),
}
"""The folder of each variant of ImageNet, and the folder in it that holds the class folders."""


def _dataset_folder(root: Path, folder: str) -> Path:
    """The folder of one dataset: `folder` in root, or root itself."""
    root = expanded(root)
    return root / folder if (root / folder).is_dir() else root


def _image_folder(place: Path, images: str) -> Path:
    return place / images if (place / images).is_dir() else place


# -- datasets with a split file --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SplitFileReader:
    """A few-shot dataset split by split_zhou_<name>.json.

    Args:
        name: a key of `FEW_SHOT`.
        root: the folder of all few-shot datasets, or the one of this dataset.
        lists: the folder of the split file; null searches in the dataset's own.
        on_error: what missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and
            the result counts them.
    """

    name: str
    _: KW_ONLY
    root: Path
    lists: Path | None = None
    on_error: OnError = "raise"

    def list(self) -> Listing:
        images, file = self._files()
        lines, class_names = read_split_file(file)
        return Listing(
            name=self.name,
            class_names=class_names,
            splits=file_splits(images, lines),
            templates=(FEW_SHOT[self.name].template,),
        )

    def read(self) -> Dataset:
        """The dataset; raises InputError for a split file that is missing or wrong, and for missing images."""
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the split file and the image folders."""
        images, file = self._files()
        lines, _names = read_split_file(file)
        paths = [path for part in lines.values() for path in part.paths]
        return files_identity([file]) + folders_identity(images, paths)

    def _files(self) -> tuple[Path, Path]:
        """The folder of the images and the split file."""
        described, root = FEW_SHOT[self.name], expanded(self.root)
        place = _dataset_folder(root, described.folder)
        folders = [expanded(self.lists)] if self.lists else [place, place / "lists", root, root / "lists"]
        file = find(f"split_zhou_{described.split}.json", folders, SPLIT_FILE, COOP)
        return _image_folder(place, described.images), file


def read_split_file(file: Path) -> tuple[dict[str, LabelledPaths], tuple[str, ...]]:
    """The splits of a split_zhou file, and the class names in label order.

    Raises:
        InputError: another form, a path that leads out of the folder, a label with two names, labels with gaps.
    """
    rows = parse_json(text_of(file), file, dict.fromkeys(SPLITS, list[Any]), f"it must hold {SPLIT_FILE}")
    listed: dict[str, LabelledPaths] = {}
    names: dict[int, str] = {}
    for split in SPLITS:
        lines = rows[split]
        for number, line in enumerate(lines):
            path, label, name = line if isinstance(line, list) and len(line) == 3 else (None, None, None)
            number_of_class = None if isinstance(label, str) else label_number(label)
            if not isinstance(path, str) or not isinstance(name, str) or number_of_class is None:
                raise InputError(f"{file} must hold {SPLIT_FILE}; entry {number} of {split!r} is {written(line)}")
            if leads_out(path):
                raise InputError(f"{file}, entry {number} of {split!r}: the path must stay below `root`, got {path!r}")
            if names.setdefault(number_of_class, name) != name:
                raise InputError(
                    f"{file}: a label must have one class name, got {names[number_of_class]!r} and {name!r} for label "
                    f"{label}"
                )
        if not lines:
            raise InputError(f"{file} must hold {SPLIT_FILE}; {split!r} is empty")
        listed[split] = LabelledPaths(
            tuple(line[0] for line in lines), np.array([int(line[1]) for line in lines], np.int64)
        )
    num_classes = check_labels({file.with_name(f"{file.name} ({split})"): lines for split, lines in listed.items()})
    return listed, tuple(spoken(names[label]) for label in range(num_classes))


# -- datasets with splits of their own -------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class AircraftReader:
    """FGVC-Aircraft: 100 variants of aircraft, with its own split.

    Args:
        root: the folder of all few-shot datasets (it holds fgvc_aircraft/), or fgvc_aircraft/ itself.
        lists: the folder of variants.txt and images_variant_{train,val,test}.txt; null searches in the dataset's own.
        on_error: what missing and unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and
            the result counts them.
    """

    root: Path
    lists: Path | None = None
    on_error: OnError = "raise"

    def list(self) -> Listing:
        images, files = self._files()
        variants = [line.strip() for line in text_of(files[0]).splitlines() if line.strip()]
        lines = {split: read_variants(file, files[0], variants) for split, file in zip(SPLITS, files[1:], strict=True)}
        return Listing(
            name="fgvc_aircraft",
            class_names=tuple(variants),
            splits=file_splits(images, lines),
            templates=("a photo of a {}, a type of aircraft.",),
        )

    def read(self) -> Dataset:
        """The dataset; raises InputError for lists that are missing or wrong, and for missing images."""
        return read_existing(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the lists and the image folder."""
        images, files = self._files()
        return files_identity(files) + folders_identity(images, ["x"])

    def _files(self) -> tuple[Path, Sequence[Path]]:
        """The folder of the images, and the files of the variants and of each split."""
        place = _dataset_folder(self.root, "fgvc_aircraft")
        place = place / "data" if (place / "data").is_dir() else place  # as the archive unpacks
        folders = [expanded(self.lists)] if self.lists else [place, place / "lists"]
        names = ["variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)]
        content = "one variant per line (variants.txt), or `image variant` per line, such as `0034309 707-320`"
        return _image_folder(place, "images"), [find(name, folders, content, AIRCRAFT) for name in names]


def read_variants(file: Path, variants_file: Path, variants: Sequence[str]) -> LabelledPaths:
    """The images of one split of FGVC-Aircraft, one `image variant` per line.

    Raises:
        InputError: a line without an image, or with a variant that `variants_file` does not name.
    """
    label_of = {variant: label for label, variant in enumerate(variants)}
    paths, labels = [], []
    for number, line in enumerate(text_of(file).splitlines(), 1):
        image, _, variant = line.strip().partition(" ")
        if not image:
            continue
        if variant not in label_of or leads_out(image):
            raise InputError(
                f"{file}, line {number}: must be `image variant` with a variant of {variants_file.name}, such as "
                f"`0034309 {variants[0] if variants else '707-320'}`, got {line.strip()[:200]!r}"
            )
        paths.append(f"{image}.jpg")
        labels.append(label_of[variant])
    return LabelledPaths(tuple(paths), np.array(labels, np.int64))


@dataclass(frozen=True, kw_only=True)
class ImageNetReader:
    """ImageNet: 1000 classes, trained on train/, tested on val/.

    Args:
        root: the folder of ImageNet, with train/<wnid>/ and val/<wnid>/ (or with those in images/), or the folder of
            all few-shot datasets (it holds imagenet/).
        class_names: a file with one `<wnid> <name>` per line, instead of the names that CLIP was tested with.
    """

    root: Path
    class_names: Path | None = None

    def list(self) -> Listing:
        place = self._place()
        wnids = _class_folders(place / "train")
        test_wnids = _class_folders(place / "val")
        if wnids != test_wnids:
            differing = sorted(set(wnids) ^ set(test_wnids))
            raise InputError(
                f"train/ and val/ of {place} must hold the same class folders, got {differing[0]!r} in only one of them"
                f"{f' and {len(differing) - 1} more' if len(differing) > 1 else ''}; is val/ sorted into wnid folders?"
            )
        return Listing(
            name="imagenet",
            class_names=of_wnids(wnids, self.class_names),
            splits={"train": _in_folders(place, "train", wnids), "test": _in_folders(place, "val", wnids)},
        )

    def read(self) -> Dataset:
        """The dataset; raises InputError for class folders that are missing, empty or unknown."""
        return self.list().dataset()

    def identity(self) -> str:
        """Hash of the class folders and the class names."""
        place = self._place()
        paths = [f"{split}/{name}/x" for split in ("train", "val") for name in _class_folders(place / split)]
        return folders_identity(place, paths) + files_identity([self.class_names])

    def _place(self) -> Path:
        return _image_folder(_dataset_folder(self.root, "imagenet"), "images")


@dataclass(frozen=True)
class ImageNetVariantReader:
    """A variant of ImageNet, for testing only; its classes are those that it has folders for.

    Args:
        name: a key of `VARIANTS`.
        root: the folder of all few-shot datasets, the one of this dataset, or the folder of its class folders.
        class_names: a file with one `<wnid> <name>` per line, instead of the names that CLIP was tested with.
    """

    name: str
    _: KW_ONLY
    root: Path
    class_names: Path | None = None

    def list(self) -> Listing:
        place = self._place()
        folders = _class_folders(place)
        wnids = _wnids_of(folders)
        # ImageNet-V2 numbers its folders, and "10" sorts before "2": labels follow the wnids.
        order = np.argsort(wnids, kind="stable")
        return Listing(
            name=self.name,
            class_names=of_wnids([wnids[row] for row in order], self.class_names),
            splits={"test": _in_folders(place, "", [folders[row] for row in order])},
            test_only=True,
        )

    def read(self) -> Dataset:
        """The dataset; raises InputError for class folders that are missing, empty or unknown."""
        return self.list().dataset()

    def identity(self) -> str:
        """Hash of the class folders and the class names."""
        place = self._place()
        paths = [f"{name}/x" for name in _class_folders(place)]
        return folders_identity(place, paths) + files_identity([self.class_names])

    def _place(self) -> Path:
        folder, images = VARIANTS[self.name]
        return _image_folder(_dataset_folder(self.root, folder), images)


def _wnids_of(folders: Sequence[str]) -> list[str]:
    """The wnids of class folders, which ImageNet-V2 names by their labels."""
    if not all(folder.isdigit() for folder in folders):
        return list(folders)
    wnids = list(imagenet_names())
    too_large = [folder for folder in folders if int(folder) >= len(wnids)]
    if too_large:
        raise InputError(f"a folder named by a label must be 0 to {len(wnids) - 1}, got {too_large[0]!r}")
    return [wnids[int(folder)] for folder in folders]


def _class_folders(place: Path) -> list[str]:
    """The class folders, sorted.

    Raises:
        InputError: no such folder, or no folder in it.
    """
    entries: Iterable[os.DirEntry[str]] = os.scandir(place) if place.is_dir() else ()
    names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{place} must be a folder of class folders, such as n01440764/, and holds none")
    return names


def _in_folders(root: Path, base: str, folders: Sequence[str]) -> Split:
    """The images in these class folders of root/base, by name; labels are the positions of the folders.

    Raises:
        InputError: a class folder without images.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        start = "/".join(part for part in (base, folder) if part)
        names = sorted(name for name in os.listdir(root / start) if has_image_name(name))
        if not names:
            raise InputError(f"the class folder {root / start} must hold images ({IMAGE_KINDS})")
        paths += [f"{start}/{name}" for name in names]
        labels += [label] * len(names)
    return Split(FileImages(root, tuple(paths)), labels)
