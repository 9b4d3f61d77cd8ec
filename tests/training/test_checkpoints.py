"""Checkpoints and weight files: written atomically, read without running code, refused where they do not fit."""

from __future__ import annotations

import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from imbalance_vlm import InputError
from imbalance_vlm.training.checkpoints import load_checkpoint, load_weights, save_checkpoint, save_weights


class TouchesFile:
    """Pickled code that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_checkpoint_is_restored(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none.pt") is None
    save_checkpoint(tmp_path / "a.pt", {"epoch": 3, "head": {"w": torch.ones(2)}, "history": [{"loss": 0.5}]})
    state = load_checkpoint(tmp_path / "a.pt")
    assert state is not None
    assert state["epoch"] == 3
    assert state["head"]["w"].tolist() == [1, 1]


def test_damaged_checkpoint_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"epoch": 3})
    path.write_bytes(path.read_bytes()[:100])
    assert load_checkpoint(path) is None
    assert "cannot be read" in capsys.readouterr().err


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path, touched = tmp_path / "a.pt", tmp_path / "touched"
    torch.save({"epoch": TouchesFile(touched)}, path)
    assert load_checkpoint(path) is None
    assert not touched.exists()
    pickle.loads(pickle.dumps(TouchesFile(touched)))
    assert touched.exists(), "the pickle above would have run code"


def test_weights_of_another_head_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_weights(path, nn.Linear(3, 2), {"recipe": "r"})
    other = nn.Linear(3, 2)
    load_weights(path, other)
    with pytest.raises(InputError, match="another head"):
        load_weights(path, nn.Linear(3, 4))
    with pytest.raises(InputError, match="no weights at"):
        load_weights(tmp_path / "none.safetensors", other)


def test_weights_of_another_base_model_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    path, module = tmp_path / "head.safetensors", nn.Linear(3, 2)
    save_weights(path, module, {"base": "aaa"})
    load_weights(path, module, "aaa")
    with pytest.raises(InputError, match=r"another base model: .*fingerprint aaa, and the encoder's is bbb; put back"):
        load_weights(path, module, "bbb")
    save_weights(path, module, {"recipe": "r"})
    load_weights(path, module, "bbb")  # the file names no base model
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a safetensors file, or is damaged"):
        load_weights(path, module, "bbb")


def test_full_disk_under_torch_is_reported(tmp_path: Path) -> None:
    """What torch.save itself raises when the system refuses to write more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(InputError, match=r"a\.pt cannot be written .*MB are free"):
            save_checkpoint(tmp_path / "a.pt", {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
