"""What a run records of the checkout that it runs from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imbalance_vlm.runs import environment

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]


def test_the_commit_is_recorded_without_writing_to_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "checkout" / "imbalance_vlm" / "runs" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    checkout = tmp_path / "checkout"
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*GIT, *arguments], cwd=checkout, check=True)
    os.utime(file, (0, 0))  # git would note the new time in its index
    before = {path: path.read_bytes() for path in (checkout / ".git").rglob("*") if path.is_file()}
    monkeypatch.setattr(environment, "__file__", str(file))
    commit = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=checkout, text=True, capture_output=True).stdout[:12]
    assert environment._commit.__wrapped__() == commit
    assert before == {path: path.read_bytes() for path in (checkout / ".git").rglob("*") if path.is_file()}
    file.write_text("changed")
    assert environment._commit.__wrapped__() == f"{commit}-dirty"
