"""Reading files that may be damaged, and writing files in one step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imbalance_vlm import InputError
from imbalance_vlm.files import (
    disk_errors,
    expanded,
    locked,
    read_checked_json,
    read_json,
    read_safetensors_header,
    remove_temporaries,
    write_atomically,
    write_checked_json,
    write_text,
)


def test_a_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "ours", {"imbalance_vlm": '{"base": "b"}'})
    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "theirs", {"format": "pt"})
    save_file({"a": torch.ones(2)}, tmp_path / "bare")
    assert read_safetensors_header(tmp_path / "ours") == {"base": "b"}
    assert read_safetensors_header(tmp_path / "theirs") == read_safetensors_header(tmp_path / "bare") == {}


@pytest.mark.parametrize("content", [b"", b"not a header", bytes(100)])
def test_a_file_without_a_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(InputError, match="damaged is not a safetensors file, or is damaged"):
        read_safetensors_header(tmp_path / "damaged")


def test_json_must_be_an_object(tmp_path: Path) -> None:
    assert read_json(tmp_path / "nowhere.json") == {}
    for content, message in (("{", "must hold JSON"), ("[1]", "must hold a JSON object, got list")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "a.json")


def test_checked_json_is_read_as_written_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    assert read_checked_json(file) is None
    write_checked_json(file, [["a", 1], None])
    assert read_checked_json(file) == [["a", 1], None]
    content = file.read_bytes()
    for damaged in (b"", content[:-4], content.replace(b"1]", b"2]"), b"[" * 100_000, b"\xff" + content, b"[1]"):
        file.write_bytes(damaged)
        assert read_checked_json(file) is None


@pytest.mark.parametrize("kind", ["folder", "link", "in a file"])
def test_a_lock_that_cannot_be_used_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.touch()
        path = path / "lock"
    with pytest.raises(InputError, match="lock cannot be written: .*; remove it"), locked(path):
        raise AssertionError("the lock was taken")


def test_nested_json_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="must hold JSON"):
        read_json(tmp_path / "a.json")


def test_text_with_the_bytes_of_a_name_is_valid(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "caf\udce9.png,café\n")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "caf\\udce9.png,café\n"


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    folder = Path("/proc/x/run")  # neither a permission nor a file in the way: there is no such folder
    message = "/proc/x/run cannot be written: No such file or directory; free some space"
    with pytest.raises(InputError, match=message), disk_errors(folder):
        folder.mkdir(parents=True)


def test_errors_of_files_that_are_read_are_not_errors_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "cache" / "entry"):
        (tmp_path / "images" / "1.png").read_bytes()


def test_the_home_folder_is_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"
    with pytest.raises(InputError, match="'~nobody_here/x' names the home folder of a user who does not exist"):
        expanded("~nobody_here/x")


# -- writing -----------------------------------------------------------------------------------------------------------
def replaced(temporary: Path) -> None:
    """Writes as safetensors does: a file of its own, readable to its owner alone, moved into place."""
    own = temporary.with_name(".own")
    own.touch(mode=0o600)
    own.replace(temporary)


@pytest.mark.parametrize("write", [Path.touch, replaced])
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_who_may_read_a_file(
    mask: int, mode: int, write: Callable[[Path], None], tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file.txt", write)
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "file.txt", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


def test_what_killed_processes_left_is_removed_and_results_stay(tmp_path: Path) -> None:
    write = """
import os, sys
from pathlib import Path
from imbalance_vlm.files import write_atomically
write_atomically(Path(sys.argv[1]), lambda temporary: (temporary.write_text("half"), os.kill(os.getpid(), 9)))
"""
    (tmp_path / "second_stage").mkdir()
    for name in ("checkpoint.pt", "second_stage/metrics.jsonl"):
        subprocess.run([sys.executable, "-c", write, tmp_path / name])
    (tmp_path / ".tmpZyX1ab").touch()  # of safetensors
    write_atomically(tmp_path / "checkpoint.pt", Path.touch)
    assert len(list(tmp_path.rglob("*"))) == 5
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoint.pt", "second_stage"}
