"""Reading files that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imbalance_vlm import InputError
from imbalance_vlm.files import read_json, read_safetensors_header


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
    for content, message in (("{", "must hold JSON"), ("[1]", "must be a mapping of a string to any value, got")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "a.json")
