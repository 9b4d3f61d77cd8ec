"""The contract of readers: open nothing early, write nothing, and give the same dataset each time."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.data.prepare import create_dataset, dataset_identity, list_dataset, make_reader
from tests.data.miniatures import MINIATURES, Section

IN_MEMORY = {"cifar10_lt", "cifar100_lt"}


def files_below(root: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file and folder."""
    states = {}
    for place, folders, files in os.walk(root):
        for name in [*folders, *files]:
            status = Path(place, name).stat()
            states[os.path.join(place, name)] = (status.st_size, status.st_mtime_ns)
    return states


@pytest.fixture(params=list(MINIATURES))
def section(request: pytest.FixtureRequest, tmp_path: Path) -> Section:
    return MINIATURES[request.param](tmp_path / "data")


def test_every_image_can_be_read_in_every_split(section: Section) -> None:
    data = make_reader(section).read()
    for part in data.splits.values():
        assert all(part.images[row].mode == "RGB" for row in range(min(len(part), 20)))
        assert len({part.images.name(row) for row in range(len(part))}) == len(part)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("an image was opened")


def test_reading_opens_no_image(section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    if section["name"] == "folder":
        pytest.skip("a folder is read through once, to find broken images")
    monkeypatch.setattr(Image, "open", refuse)
    make_reader(section).read().splits["test"].fingerprint  # noqa: B018


def test_listing_opens_no_image_and_agrees_with_reading(section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    data = create_dataset(**section)
    monkeypatch.setattr(Image, "open", refuse)
    listing, listed = list_dataset(section)
    assert listed.class_names == data.class_names == listing.class_names
    assert {name: part.fingerprint for name, part in listed.splits.items()} == {
        name: part.fingerprint for name, part in data.splits.items()
    }


def test_a_listing_may_leave_undivided_images_together(section: Section) -> None:
    listing, data = list_dataset(section, whole=True)
    if listing.undivided:
        assert set(listing.splits) == {"train"}
        assert data.splits["train"] is data.splits["test"]
    assert bool(listing.undivided) == (section["name"] in ("folder", "table"))


def test_listing_does_not_check_files_for_existence(tmp_path: Path) -> None:
    section = MINIATURES["places_lt"](tmp_path / "data")
    total = len(create_dataset(**section).splits["train"])
    next((tmp_path / "data").rglob("train/*/*.jpg")).unlink()
    with pytest.raises(InputError, match="1 of 31 images is not in"):
        create_dataset(**section)
    assert len(list_dataset(section)[1].splits["train"]) == total


def test_nothing_is_written_beside_the_data(section: Section, tmp_path: Path) -> None:
    before = files_below(tmp_path / "data")
    reader = make_reader(section)
    reader.read().splits["test"].images[0].load()
    reader.list()
    reader.identity()
    assert files_below(tmp_path / "data") == before


def test_the_same_files_give_the_same_dataset(section: Section) -> None:
    first, again = make_reader(section).read(), make_reader(section).read()
    assert first.class_names == again.class_names
    assert first.splits.keys() == again.splits.keys()
    for name, part in first.splits.items():
        assert part.fingerprint == again.splits[name].fingerprint
    assert make_reader(section).identity() == make_reader(section).identity()


def test_adding_or_removing_an_image_changes_the_identity(section: Section, tmp_path: Path) -> None:
    before = make_reader(section).identity(), dataset_identity(section)
    endings = (
        (".tar", "data_batch_1", "train")
        if section["name"] in IN_MEMORY | {"webdataset"}
        else (".jpg", ".JPEG", ".jpeg", ".png")
    )
    file = next(
        path for path in sorted((tmp_path / "data").rglob("*")) if path.is_file() and path.name.endswith(endings)
    )
    file.write_bytes(file.read_bytes() + b"\0" * 512)
    if section["name"] not in IN_MEMORY | {"webdataset", "table", "folder"}:
        file.unlink()
    assert make_reader(section).identity() != before[0]
    assert dataset_identity(section) != before[1]


def test_images_travel_to_loader_workers(section: Section) -> None:
    images = make_reader(section).read().splits["test"].images
    copy = pickle.loads(pickle.dumps(images))
    assert copy[0].tobytes() == images[0].tobytes()


def test_a_missing_root_is_named(section: Section, tmp_path: Path) -> None:
    key = "file" if section["name"] == "table" else "root"
    with pytest.raises(InputError, match="nowhere"):
        make_reader(section | {key: str(tmp_path / "nowhere")}).read()


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.DATASETS])
def test_a_reader_is_a_frozen_dataclass_whose_settings_are_explained(name: str) -> None:
    reader = catalogue.DATASETS.get(name).load()
    assert isinstance(reader, type)
    assert dataclasses.is_dataclass(reader)
    assert reader.__dataclass_params__.frozen  # type: ignore[attr-defined]
    documented = inspect.getdoc(reader) or ""
    for field in dataclasses.fields(reader):
        assert field.kw_only == (field.name != "name")
        assert f"{field.name}:" in documented, f"{name} does not explain `{field.name}`"
        if isinstance(field.default, SettingGroup):
            group = type(field.default)
            for member in dataclasses.fields(group):
                assert f"{member.name}:" in (inspect.getdoc(group) or "")


class NoIdentity:
    def list(self) -> None: ...

    def read(self) -> None: ...


def test_a_reader_without_identity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue.DATASETS, "_entries", dict(catalogue.DATASETS._entries))
    catalogue.DATASETS.add("mine", NoIdentity, "a plug-in's dataset")
    message = r"reader of dataset 'mine' must have the methods .* NoIdentity lacks identity\(\); .* changed files"
    with pytest.raises(InputError, match=message):
        dataset_identity({"name": "mine"})
    with pytest.raises(InputError, match=message):
        create_dataset("mine")


def test_settings_are_checked_together() -> None:
    with pytest.raises(
        InputError, match=r"dataset 'folder': unknown setting `rot`.*`shots` must be.*`root` is missing"
    ):
        create_dataset("folder", rot="x", shots=0)
