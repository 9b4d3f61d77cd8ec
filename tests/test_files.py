"""Reading files that may be damaged, and writing files in one step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imbalance_vlm import InputError
from imbalance_vlm.files import (
    cache_folder,
    disk_errors,
    expanded,
    locked,
    parse_json,
    read_checked_json,
    read_json,
    read_safetensors_header,
    remove_temporaries,
    require_file,
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
    for content, message in (("{", "must hold JSON"), ("[1]", "must be a mapping, got")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("9" * 5000, "must hold JSON"),
        ('{"size": NaN}', "NaN is no number in JSON"),
        ('{"size": -Infinity}', "-Infinity is no number in JSON"),
        ('{"a": 1, "a": 2}', "key 'a' is written twice"),
        (b"\xff\x00\x00", "must hold JSON"),
        ("3", "must be a mapping with size, names, got 3"),
        ('{"names": ["a"]}', "must hold size, names, and has no 'size'"),
        ('{"size": "2"}', "has a wrong 'size': it must be a whole number"),
        ('{"size": ' + "9" * 400 + "}", "has a wrong 'size': it must be a whole number"),
        ('{"size": 1, "names": ["a", 1]}', "has a wrong 'names'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_damaged_and_misshapen_json_is_refused_with_its_source_and_the_remedy(text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as error:
        parse_json(text, "a/file.json", {"size": int, "names": list[str] | None}, "write it again")
    assert str(error.value).startswith("a/file.json ")
    assert str(error.value).endswith("; write it again")
    assert len(str(error.value)) < 500


def test_a_list_of_mappings_names_the_wrong_entry() -> None:
    shape = [{"id": int}]
    assert parse_json('[{"id": 1, "more": 2}]', "f", shape) == [{"id": 1, "more": 2}]
    with pytest.raises(InputError, match="has a wrong entry 1: it must hold id, and has no 'id'"):
        parse_json('[{"id": 1}, {}]', "f", shape)
    with pytest.raises(InputError, match="f must be a list, got {}"):
        parse_json("{}", "f", shape)


def test_a_path_that_no_file_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == Path("/home/me/a")
    for path in ("~no_such_user/a", "a\0b", "x" * 256, "a/" * 3000):
        with pytest.raises(InputError, match="`root` must name a file or folder that can exist"):
            expanded(path, "`root`")
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", "~no_such_user/cache")
    with pytest.raises(InputError, match=r"\$IMBALANCE_VLM_CACHE must name a file or folder"):
        cache_folder()


def test_pipes_devices_and_folders_are_not_read_as_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=kind):
            require_file(path, "`pretrained`")
    with pytest.raises(InputError, match="no such file"):
        require_file(tmp_path / "nowhere", "`pretrained`")


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a device, a pipe or a socket"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_checked_json_is_read_as_written_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "list.json"
    assert read_checked_json(file) is None
    write_checked_json(file, [["a", 1], None])
    assert read_checked_json(file) == [["a", 1], None]
    content = file.read_bytes()
    for damaged in (b"", content[:-4], content.replace(b"1]", b"2]"), b"[" * 100_000, b"\xff" + content, b"[1]"):
        file.write_bytes(damaged)
        assert read_checked_json(file) is None
        assert "it is made again" in capsys.readouterr().err


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
