"""Datasets by name: readers made from sections, settings checked together, listings and identities."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Registry
from imbalance_vlm.data.prepare import create_dataset, dataset_identity, list_dataset
from tests.data.miniatures import MINIATURES
from tests.data.reader_contracts import contents


@pytest.mark.parametrize("name", MINIATURES)
def test_a_listed_dataset_is_the_one_that_is_read(name: str, tmp_path: Path) -> None:
    section = MINIATURES[name](tmp_path) | {"templates": "simple", "shots": None if "imagenet_" in name else 2}
    _, listed = list_dataset(section)
    dataset = create_dataset(**section)
    assert contents(listed) == contents(dataset)
    assert listed.templates == dataset.templates


@pytest.mark.parametrize("name", MINIATURES)
def test_images_that_the_source_does_not_divide_can_stay_together(name: str, tmp_path: Path) -> None:
    listing, dataset = list_dataset(MINIATURES[name](tmp_path), together=True)
    assert bool(listing.undivided) == (name in ("folder", "table"))
    if listing.undivided:
        assert set(listing.splits) == {"train"}
        assert dataset.splits["train"] is dataset.splits["test"]


def test_listing_does_not_check_files_for_existence(tmp_path: Path) -> None:
    section = MINIATURES["places_lt"](tmp_path)
    total = len(create_dataset(**section).splits["train"])
    next(tmp_path.rglob("train/*/*.jpg")).unlink()
    with pytest.raises(InputError, match="1 of 31 images is not in"):
        create_dataset(**section)
    assert len(list_dataset(section)[1].splits["train"]) == total


def test_settings_and_files_decide_the_identity(tmp_path: Path) -> None:
    section = MINIATURES["folder"](tmp_path)
    identity = dataset_identity(section)
    assert dataset_identity(section | {"shots": 2}) != identity
    assert dataset_identity(dict(reversed(section.items()))) == identity
    next(tmp_path.rglob("*.png")).unlink()
    assert dataset_identity(section) != identity


def test_settings_are_checked_together() -> None:
    with pytest.raises(
        InputError, match=r"dataset 'folder': unknown setting `rot`.*`shots` must be.*`root` is missing"
    ):
        create_dataset("folder", rot="x", shots=0)


class NoIdentity:
    def list(self) -> None: ...

    def read(self) -> None: ...


def test_a_reader_without_identity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("dataset")
    registry.add("mine", NoIdentity, "a plug-in's dataset")
    monkeypatch.setattr(catalogue, "DATASETS", registry)
    message = r"reader of dataset 'mine' must have the methods .* NoIdentity lacks identity\(\); .* changed files"
    with pytest.raises(InputError, match=message):
        dataset_identity({"name": "mine"})
    with pytest.raises(InputError, match=message):
        create_dataset("mine")
