"""`imbalance-vlm data` on the name of a dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imbalance_vlm.cli.main import main


def test_scenes_are_composed_of_a_dataset_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    arguments = ["data", "scenes", "icons_weather", "--split", "test", "--count", "4", "--format", "lvis"]
    assert main([*arguments, "--out", str(out)]) in (None, 0)
    assert "4 scenes" in capsys.readouterr().err
    assert len(list((out / "images").glob("*.png"))) == 4
    assert len(json.loads((out / "annotations.json").read_text(encoding="utf-8"))["images"]) == 4


def test_verify_takes_the_name_of_a_dataset_and_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", "icons_animals", "data.classes=base", "--ignore", "near_duplicate"]) == 0
    assert "25 classes" in capsys.readouterr().out


def test_scenes_of_an_unknown_split_name_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "scenes", "icons_lt_emoji", "--out", str(tmp_path / "scenes")]) == 2
    assert "`split` must be one of test" in capsys.readouterr().err
    assert not (tmp_path / "scenes").exists()
