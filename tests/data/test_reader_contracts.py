"""The contracts of readers over every registered dataset, and the contracts themselves on bad readers."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import random
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.data.dataset import Dataset, FileImages, Split, has_image_name
from imbalance_vlm.data.prepare import make_reader
from imbalance_vlm.data.reader import Listing
from tests.data import reader_contracts as contracts
from tests.data.miniatures import MINIATURES, write_image
from tests.data.reader_contracts import CONTRACTS, Contract, Source
from tests.data.test_hf_disk import needs_datasets, save

EMBEDDED = tuple(name for name in catalogue.DATASETS.names() if name.startswith("icons_"))
OF_FILES = (
    contracts.identity_changes_with_an_image,
    contracts.identity_changes_with_a_file,
    contracts.a_missing_source_is_named,
)
"""Contracts that change files, which those that ship with the package are not for."""


def source_of(name: str, folder: Path) -> Source:
    if name in EMBEDDED:
        section: dict[str, Any] = {"name": name}
    elif name == "hf_disk":
        root = save(folder / "hf", {"train": [0, 0, 1], "test": [0, 1]}, ["red_fox", "owl"])
        section = {"name": name, "root": str(root)}
    else:
        section = MINIATURES[name](folder)
    return Source(folder, lambda: make_reader(section))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_datasets) if name == "hf_disk" else name for name in catalogue.DATASETS.names()],
)
def test_every_reader_keeps_every_contract(name: str, contract: Contract, tmp_path: Path) -> None:
    if name in EMBEDDED and contract in OF_FILES:
        pytest.skip("ships with the package")
    contract(source_of(name, tmp_path / "data"))


@pytest.mark.parametrize("name", catalogue.DATASETS.names())
def test_every_setting_of_a_reader_is_documented(name: str) -> None:
    reader: Any = catalogue.DATASETS.get(name).load()
    groups = [type(field.default) for field in dataclasses.fields(reader) if isinstance(field.default, SettingGroup)]
    for owner in (reader, *groups):
        documentation = inspect.getdoc(owner) or ""
        missing = [field.name for field in dataclasses.fields(owner) if f"{field.name}:" not in documentation]
        assert missing == []


# -- bad readers -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GoodReader:
    """Class folders, and names.txt with the class names; splits by the beginning of a file's name."""

    name: str
    _: KW_ONLY
    root: Path

    def list(self) -> Listing:
        names = tuple((self.root / "names.txt").read_text().split("\n")[:3])
        splits = {split: self.split(split) for split in ("train", "test")}
        return Listing(name=self.name, class_names=names, splits=splits)

    def split(self, beginning: str) -> Split:
        rows = [
            (f"{label}/{path.name}", label)
            for label in range(3)
            for path in sorted((self.root / str(label)).iterdir())
            if path.name.startswith(beginning)
        ]
        return Split(FileImages(self.root, tuple(path for path, _ in rows)), [label for _, label in rows])

    def read(self) -> Dataset:
        if not self.root.is_dir():
            raise InputError(f"`root` must be a folder, got {self.root}")
        return self.list().dataset()

    def identity(self) -> str:
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        return " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


class OpensImages(GoodReader):
    def list(self) -> Listing:
        Image.open(next(self.root.rglob("*.png")))
        return super().list()


class ListsMoreThanItReads(GoodReader):
    def read(self) -> Dataset:
        dataset = super().read()
        return replace(dataset, splits=dataset.splits | {"test": dataset.splits["test"].take(np.arange(3))})


class Shuffles(GoodReader):
    def read(self) -> Dataset:
        dataset = super().read()
        rows = random.SystemRandom().sample(range(len(dataset.splits["train"])), len(dataset.splits["train"]))
        return replace(dataset, splits=dataset.splits | {"train": dataset.splits["train"].take(np.array(rows))})


class KeepsTheOrderOfTheFolder(GoodReader):
    def split(self, beginning: str) -> Split:
        paths = [path for path in self.root.rglob("*.png") if path.name.startswith(beginning)]
        names = tuple(path.relative_to(self.root).as_posix() for path in paths)
        return Split(FileImages(self.root, names), [int(path.parent.name) for path in paths])


class WritesAnIndex(GoodReader):
    def list(self) -> Listing:
        (self.root / "index.txt").write_text("images")
        return super().list()


class KeepsFileNames(GoodReader):
    def read(self) -> Dataset:
        dataset = super().read()
        return replace(dataset, class_names=("tench.", "  gold fish", "missile"))


class SkipsALabel(GoodReader):
    def read(self) -> Dataset:
        dataset = super().read()
        return replace(dataset, class_names=(*dataset.class_names, "lynx"))


class RepeatsTrainingImages(GoodReader):
    def split(self, beginning: str) -> Split:
        return super().split("train")


@dataclass(frozen=True, eq=False)
class GreyImages(FileImages):
    def __getitem__(self, index: int) -> Image.Image:
        return super().__getitem__(index).convert("L")


class ReadsGreyImages(GoodReader):
    def split(self, beginning: str) -> Split:
        split = super().split(beginning)
        images: Any = split.images
        return Split(GreyImages(images.root, images.paths), split.labels)


@dataclass(frozen=True, eq=False)
class UnstableImages(FileImages):
    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return str(id(self))


class FingerprintsTheObject(GoodReader):
    def split(self, beginning: str) -> Split:
        split = super().split(beginning)
        images: Any = split.images
        return Split(UnstableImages(images.root, images.paths), split.labels)


class TemplateWithoutAPlace(GoodReader):
    def read(self) -> Dataset:
        return replace(super().read(), templates=("a photo",))


class IdentityOfTheMoment(GoodReader):
    def identity(self) -> str:
        return str(random.SystemRandom().random())


class IdentityOfTheNames(GoodReader):
    def identity(self) -> str:
        return (self.root / "names.txt").read_text()


class IdentityOfTheImages(GoodReader):
    def identity(self) -> str:
        images = sorted(path.name for path in self.root.rglob("*") if has_image_name(path.name))
        return hashlib.sha256(" ".join(images).encode()).hexdigest()


class FailsWithoutWords(GoodReader):
    def read(self) -> Dataset:
        if not self.root.is_dir():
            raise InputError("no such folder")
        return super().read()


@dataclass(frozen=True)
class TakesAPositionalSetting(GoodReader):
    on_error: str = "raise"


BAD: dict[type[GoodReader], Contract] = {
    OpensImages: contracts.listing_opens_no_image,
    ListsMoreThanItReads: contracts.reading_agrees_with_listing,
    Shuffles: contracts.reading_is_repeatable,
    KeepsTheOrderOfTheFolder: contracts.the_order_of_folder_entries_does_not_matter,
    WritesAnIndex: contracts.writes_nothing,
    KeepsFileNames: contracts.class_names_are_distinct_words,
    SkipsALabel: contracts.labels_are_dense,
    RepeatsTrainingImages: contracts.images_have_distinct_names,
    ReadsGreyImages: contracts.images_are_rgb,
    FingerprintsTheObject: contracts.images_reach_loader_workers,
    TemplateWithoutAPlace: contracts.templates_hold_one_place,
    IdentityOfTheMoment: contracts.identity_is_stable,
    IdentityOfTheNames: contracts.identity_changes_with_an_image,
    IdentityOfTheImages: contracts.identity_changes_with_a_file,
    FailsWithoutWords: contracts.a_missing_source_is_named,
    TakesAPositionalSetting: contracts.settings_are_frozen_keywords,
}


def source_for(reader: type[GoodReader], folder: Path) -> Source:
    folder.mkdir()
    (folder / "names.txt").write_text("tench\ngold fish\nmissile\n")
    for label in range(3):
        for split in ("train", "test"):
            for number in range(2):
                write_image(folder / str(label) / f"{split} {number}.png", label)
    return Source(folder, lambda: reader("mine", root=folder))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_a_good_reader_keeps_the_contract(contract: Contract, tmp_path: Path) -> None:
    contract(source_for(GoodReader, tmp_path / "data"))


@pytest.mark.parametrize(("reader", "contract"), BAD.items(), ids=[reader.__name__ for reader in BAD])
def test_a_bad_reader_breaks_its_contract(reader: type[GoodReader], contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        contract(source_for(reader, tmp_path / "data"))


def test_every_contract_is_seen_to_fail() -> None:
    assert set(BAD.values()) == set(CONTRACTS)
