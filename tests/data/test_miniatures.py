"""What every reader must do: open nothing before it is asked, write nothing, and give the same set each time."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.data import cifar_lt, few_shot, folder, long_tailed, table, webdataset
from imbalance_vlm.data.dataset import Dataset
from tests.data.miniatures import MINIATURES, Section

MODULES = (long_tailed, cifar_lt, few_shot, table, webdataset, folder)
IN_MEMORY = {"cifar10_lt", "cifar100_lt"}


def reader(name: str) -> Callable[..., Dataset]:
    return next(getattr(module, name) for module in MODULES if hasattr(module, name))


def settings(section: Section) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def everything(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for place, folders, files in os.walk(root):
        for name in [*folders, *files]:
            status = Path(place, name).stat()
            found[os.path.join(place, name)] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(params=list(MINIATURES))
def section(request: pytest.FixtureRequest, tmp_path: Path) -> Section:
    return MINIATURES[request.param](tmp_path / "data")


def test_every_image_can_be_read_in_every_split(section: Section) -> None:
    data = reader(section["name"])(**settings(section))
    for part in data.splits.values():
        assert all(part.images[row].mode == "RGB" for row in range(min(len(part), 20)))
        assert len({part.images.name(row) for row in range(len(part))}) == len(part)


def test_no_image_is_opened_before_it_is_asked_for(section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    if section["name"] == "folder":
        pytest.skip("a folder of one's own is read through first, to find broken images")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    data = reader(section["name"])(**settings(section))
    data.splits["test"].fingerprint  # noqa: B018


def test_nothing_is_written_beside_the_data(section: Section, tmp_path: Path) -> None:
    before = everything(tmp_path / "data")
    build = reader(section["name"])
    build(**settings(section)).splits["test"].images[0].load()
    build.identity(**settings(section))  # type: ignore[attr-defined]
    assert everything(tmp_path / "data") == before


def test_the_same_files_give_the_same_set(section: Section) -> None:
    build = reader(section["name"])
    first, again = build(**settings(section)), build(**settings(section))
    assert first.class_names == again.class_names
    assert first.splits.keys() == again.splits.keys()
    for name, part in first.splits.items():
        assert part.fingerprint == again.splits[name].fingerprint
    identify = build.identity  # type: ignore[attr-defined]
    assert identify(**settings(section)) == identify(**settings(section))


def test_an_image_more_or_less_changes_the_identity(section: Section, tmp_path: Path) -> None:
    identify = reader(section["name"]).identity  # type: ignore[attr-defined]
    before = identify(**settings(section))
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
    assert identify(**settings(section)) != before


def test_sets_travel_to_loader_workers(section: Section) -> None:
    data = reader(section["name"])(**settings(section))
    images = pickle.loads(pickle.dumps(data.splits["test"].images))
    assert images[0].tobytes() == data.splits["test"].images[0].tobytes()


def test_a_root_that_is_not_there(section: Section, tmp_path: Path) -> None:
    key = "file" if section["name"] == "table" else "root"
    with pytest.raises(InputError, match="nowhere"):
        reader(section["name"])(**settings(section) | {key: str(tmp_path / "nowhere")})


def test_settings_are_keyword_only_and_explained(section: Section) -> None:
    build = reader(section["name"])
    documented = inspect.getdoc(build) or ""
    for parameter in inspect.signature(build).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert f"{parameter.name}:" in documented, f"{section['name']} does not explain `{parameter.name}`"
