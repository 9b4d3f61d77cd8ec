"""What is remembered of files: by their bytes and state, and never a fault of the moment."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imbalance_vlm.data import contents, state_table
from imbalance_vlm.data.contents import content_hashes, image_faults
from imbalance_vlm.data.dataset import FileImages
from imbalance_vlm.files import cache_folder


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this test are as good as old ones."""
    monkeypatch.setattr(state_table, "YOUNG", -1.0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []

    def recorded(path: str, mode: str) -> Any:
        names.append(os.path.basename(path))
        return open(path, mode)

    monkeypatch.setattr(contents, "open", recorded, raising=False)
    return names


def colours(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), name).save(folder / f"{number}.bmp")
        os.utime(folder / f"{number}.bmp", (0, 0))
    return folder


def fingerprint(folder: Path) -> str:
    return FileImages(folder, ("0.bmp", "1.bmp")).fingerprint


def test_equal_names_sizes_and_times_are_told_apart(tmp_path: Path) -> None:
    first = colours(tmp_path / "A" / "photos", "red", "blue")
    second = colours(tmp_path / "B" / "photos", "blue", "red")
    assert fingerprint(first) != fingerprint(second)


def test_a_moved_copied_or_touched_folder_keeps_its_fingerprint(tmp_path: Path) -> None:
    folder = colours(tmp_path / "here", "red", "blue")
    before = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    folder.rename(tmp_path / "moved")
    os.utime(tmp_path / "copy" / "0.bmp")
    assert fingerprint(tmp_path / "copy") == fingerprint(tmp_path / "moved") == before


def test_a_folder_put_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", "red", "blue")
    before = fingerprint(folder)
    folder.rename(tmp_path / "old")
    colours(tmp_path / "new", "blue", "red").rename(folder)
    assert fingerprint(folder) != before


def test_bytes_written_in_place_with_the_old_time_are_noticed(tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", "red", "blue")
    before = fingerprint(folder)
    (folder / "0.bmp").write_bytes((folder / "1.bmp").read_bytes())
    os.utime(folder / "0.bmp", (0, 0))
    assert fingerprint(folder) != before


def test_files_are_read_once(tmp_path: Path, opened: list[str]) -> None:
    folder = colours(tmp_path / "photos", "red", "blue")
    files = [folder / "0.bmp", folder / "1.bmp", folder / "0.bmp"]
    first = content_hashes(files)
    assert first[0] == first[2] != first[1]
    assert image_faults(files) == ["", "", ""]
    assert sorted(opened) == ["0.bmp", "0.bmp", "1.bmp", "1.bmp"], "for the hash, and to be decoded"
    assert content_hashes(files) == first
    assert image_faults(files) == ["", "", ""]
    assert len(opened) == 4


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_table, "YOUNG", 60.0)
    folder = colours(tmp_path / "photos", "red")
    for _ in range(2):
        content_hashes([folder / "0.bmp"])
    assert opened == ["0.bmp", "0.bmp"]


def refused(error: BaseException) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_could_not_be_opened_is_tried_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [colours(tmp_path / "photos", "red") / "0.bmp"]
    with monkeypatch.context() as patch:
        patch.setattr(contents, "open", refused(OSError(number, os.strerror(number))), raising=False)
        (fault,) = image_faults(files)
        assert os.strerror(number) in fault
        failed = content_hashes(files)
    assert image_faults(files) == [""]
    assert content_hashes(files) != failed


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_decoder_that_failed_for_the_moment_is_tried_again(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [colours(tmp_path / "photos", "red") / "0.bmp"]
    with monkeypatch.context() as patch:
        patch.setattr(contents, "read_rgb", refused(error))
        assert image_faults(files) != [""]
    assert image_faults(files) == [""]


def test_faults_of_the_content_are_remembered_until_it_changes(tmp_path: Path, opened: list[str]) -> None:
    folder = colours(tmp_path / "photos", "red")
    path = folder / "0.bmp"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    (fault,) = image_faults([path])
    assert "truncated" in fault
    assert image_faults([path]) == [fault]
    assert opened == ["0.bmp"]
    path.write_bytes(whole)
    assert image_faults([path]) == [""]


def test_a_cache_that_cannot_be_used_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = colours(tmp_path / "photos", "red", "blue")
    expected = fingerprint(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", str(tmp_path / "file"))
    assert fingerprint(folder) == expected


def test_a_damaged_table_is_replaced(tmp_path: Path, opened: list[str]) -> None:
    files = [colours(tmp_path / "photos", "red") / "0.bmp"]
    expected = content_hashes(files)
    (table,) = cache_folder().glob("contents-*")
    table.write_bytes(b"no database at all" * 100)
    for _ in range(2):
        assert content_hashes(files) == expected
    assert opened == ["0.bmp", "0.bmp"]
