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
from imbalance_vlm.files import read_json, read_safetensors_header, remove_abandoned, write_atomically


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


WRITER = """
import sys, time
from pathlib import Path
from imbalance_vlm.files import write_atomically

def write(temporary):
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), write)
"""


def test_what_a_killed_process_was_writing_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "run" / "file"], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
        writers[0].kill()
        writers[0].wait()
        assert len(list((tmp_path / "run").iterdir())) == 2
        remove_abandoned(tmp_path)
        assert len(list((tmp_path / "run").iterdir())) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    remove_abandoned(tmp_path)
    assert not list((tmp_path / "run").iterdir())


def test_an_empty_temporary_folder_may_be_in_use_for_a_minute(tmp_path: Path) -> None:
    folder = tmp_path / ".0.tmp"
    folder.mkdir()
    remove_abandoned(tmp_path)
    assert folder.exists()
    os.utime(folder, (0, 0))
    remove_abandoned(tmp_path)
    assert not folder.exists()
