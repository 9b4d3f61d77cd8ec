"""Checkpoints within an epoch: when they are written, and that a resumed training ends with the same numbers."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from imbalance_vlm import InputError, files
from imbalance_vlm.training import state
from imbalance_vlm.training.distributed.processes import ProcessGroup
from imbalance_vlm.training.state import CheckpointTimer
from tests.training.tiny_training import DropoutHead, fit, losses, weights


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
@pytest.mark.parametrize("loss", ["cross_entropy", "gaussian_clouded", "seesaw", "paco"])
def test_training_stopped_at_any_step_resumes_to_the_same_end(loss: str, stop_at: int, tmp_path: Path) -> None:
    settings = {"ema": 0.9, "accumulate": 2, "clip_grad_norm": 1.0}
    wanted = weights(tmp_path / "through", loss, DropoutHead, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", loss, DropoutHead, stop_at, **settings)
    assert torch.equal(weights(tmp_path / "stopped", loss, DropoutHead, **settings), wanted)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "through")


def test_training_resumes_at_the_step_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_at=5)
    assert "resuming after epoch 1 and 2 steps of the next" in capsys.readouterr().err


def test_checkpoint_interval_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    monkeypatch.setattr(state, "save_checkpoint", lambda path, saved: written.append((saved["epoch"], saved["step"])))
    fit(tmp_path, checkpoint_seconds=1000.0)
    assert written == []
    fit(tmp_path)
    assert written == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_slow_writing_makes_checkpoints_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(state.time, "monotonic", lambda: now)
    timer = CheckpointTimer(30.0, ProcessGroup())

    def slow() -> None:
        nonlocal now
        now += 6.0

    now = 31.0
    assert timer.is_due(0)
    timer.run(slow)
    now += 100.0
    assert not timer.is_due(1), "6 seconds are a twentieth of 120"
    now += 21.0
    assert timer.is_due(2)


def test_checkpoint_of_an_earlier_version_is_ignored(tmp_path: Path) -> None:
    torch.save({"epoch": 2}, tmp_path / "checkpoint.pt")
    assert len(fit(tmp_path)[1].history) == 3


def disk_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("how", ["system", "torch"])
def test_full_disk_leaves_the_last_checkpoint(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_at=4)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed writing file data/0")

    with monkeypatch.context() as patch:
        if how == "system":
            patch.setattr(files.os, "fsync", disk_full)
        else:
            patch.setattr(torch, "save", half)
        with pytest.raises(InputError, match=r"checkpoint\.pt.*free some space or choose another folder"):
            fit(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]
    wanted = weights(tmp_path / "through")
    assert torch.equal(weights(tmp_path), wanted)
