"""The cache of inspections: what it gives back, and what it survives."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data import state_table
from imbalance_vlm.verification.inspection import Inspection
from imbalance_vlm.verification.inspection_cache import InspectionCache

TRUNCATED = Inspection("truncated", "cut", "c0ffee", "", 3, 4)


def test_an_inspection_is_found_by_container_name_size_and_time() -> None:
    with InspectionCache() as cache:
        cache.add("home", "1.jpg", "4 7", TRUNCATED)
    with InspectionCache() as cache:
        assert cache.get("home", "1.jpg", "4 7") == TRUNCATED
        assert cache.get("home", "1.jpg", "4 8") is None
        assert cache.get("home", "1.jpg", "5 7") is None
        assert cache.get("elsewhere", "1.jpg", "4 7") is None
        cache.add("home", "1.jpg", "4 8", Inspection(content="1"))
    with InspectionCache() as cache:
        assert cache.get("home", "1.jpg", "4 7") is None, "the newer one replaces it"
        assert cache.get("home", "1.jpg", "4 8") == Inspection(content="1")


def test_an_image_that_could_not_be_read_is_not_kept() -> None:
    with InspectionCache() as cache:
        for passing in (Inspection("missing"), Inspection("unreadable", "Permission denied")):
            cache.add("home", "1.jpg", "4 7", passing)
    with InspectionCache() as cache:
        assert cache.get("home", "1.jpg", "4 7") is None


def test_names_and_messages_that_are_not_unicode_are_kept() -> None:
    with InspectionCache() as cache:
        cache.add("home", "\udcff.jpg", "4 7", Inspection("unreadable", "\udcff", "c0ffee"))
    with InspectionCache() as cache:
        assert cache.get("home", "\udcff.jpg", "4 7") == Inspection("unreadable", "?", "c0ffee")


def test_inspections_before_an_interruption_are_kept() -> None:
    cache = InspectionCache()
    cache.add("home", "1.jpg", "4 7", TRUNCATED)
    cache.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with InspectionCache() as cache:
        assert cache.get("home", "1.jpg", "4 7") == TRUNCATED


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0 and half of the rest"])
def test_a_damaged_file_is_replaced(content: bytes) -> None:
    with InspectionCache() as cache:
        cache.add("home", "1.jpg", "4 7", TRUNCATED)
    cache.path.write_bytes(content)
    with InspectionCache() as cache:
        assert cache.get("home", "1.jpg", "4 7") is None
        cache.add("home", "1.jpg", "4 7", TRUNCATED)
    with InspectionCache() as cache:
        assert cache.get("home", "1.jpg", "4 7") == TRUNCATED


def test_damage_in_later_pages_is_survived() -> None:
    with InspectionCache() as cache:
        for number in range(2000):
            cache.add("home", f"{number}.jpg", "4 7", TRUNCATED)
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    with InspectionCache() as cache:
        assert cache.get("home", "5.jpg", "4 7") is None
        cache.add("home", "5.jpg", "4 7", TRUNCATED)
    with InspectionCache() as cache:
        assert cache.get("home", "5.jpg", "4 7") == TRUNCATED


WRITER = """
import sys
from imbalance_vlm.data import state_table
from imbalance_vlm.verification.inspection import Inspection
from imbalance_vlm.verification.inspection_cache import InspectionCache
state_table.CHUNK = 10
with InspectionCache() as cache:
    for number in range(300):
        cache.add(sys.argv[1], f"{number}.jpg", "4 7", Inspection("truncated", content="c0ffee"))
"""


def test_several_processes_write_at_once() -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name]) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with InspectionCache() as cache:
        for name in ("a", "b", "c"):
            assert all(cache.get(name, f"{number}.jpg", "4 7") for number in range(300))


def test_a_locked_file_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "PATIENCE", 0.1)
    with InspectionCache() as cache:
        pass
    blocking = sqlite3.connect(cache.path, isolation_level=None)
    blocking.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match="cannot be used: database is locked; .* IMBALANCE_VLM_CACHE"):
        InspectionCache()
    blocking.close()


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        InspectionCache()
