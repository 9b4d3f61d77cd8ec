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
from imbalance_vlm.files import read_json, read_safetensors_header, remove_temporaries, write_atomically


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
