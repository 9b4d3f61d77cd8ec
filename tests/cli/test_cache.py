"""`cache`."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_vlm.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("finished")
def test_cache_path_ls_and_prune(capsys: Capture, tmp_path: Path) -> None:
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "cache" / "features")
    assert main(["cache", "ls"]) == 0
    output = capsys.readouterr().out
    assert "colours train" in output
    assert "2 entries" in output
    assert main(["cache", "prune", "--older-than-days", "1"]) == 0
    assert "removed 0 entries" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0
    assert "removed 2 entries" in capsys.readouterr().out
