"""Names of classes, folders and runs that are markup, formulas or terminal codes, from the images to every output."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imbalance_vlm import run
from imbalance_vlm.cli.main import main
from imbalance_vlm.escapes import from_csv_cell
from imbalance_vlm.results.result import RunResult, StudyResult
from imbalance_vlm.results.tables import format_table
from tests.data.miniatures import write_image

NAMES = ["=cmd()", "@SUM(1)", "\x1b[31mred", "a|b<i>x", "x^2$_1\\", "{%&#~}"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    root = tmp_path / "odd"
    for number, name in enumerate(NAMES):
        for image in range(4):
            write_image(root / "train" / name / f"{image}.png", number)
            write_image(root / "test" / name / f"{image}.png", number + len(NAMES))
    return root


@pytest.fixture
def odd_recipe(recipe: dict[str, Any], odd: Path) -> dict[str, Any]:
    return {**recipe, "data": {"name": "folder", "root": str(odd)}, "training": {"epochs": 1}}


def read_back(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False).map(from_csv_cell)


def test_predictions_are_no_formulas_and_can_be_read_back(odd_recipe: dict[str, Any], odd: Path) -> None:
    result = run(odd_recipe)
    assert isinstance(result, RunResult)
    text = (result.path / "predictions.csv").read_text()
    assert "\x1b" not in text
    assert not any(cell.startswith(("=", "@")) for line in text.splitlines() for cell in line.split(","))
    frame = read_back(result.path / "predictions.csv")
    assert set(frame["label"]) == set(result.record["classes"]["names"])
    assert set(frame["predicted"]) <= set(frame["label"])
    assert all((odd / image).is_file() for image in frame["image"])


def test_predict_prints_no_codes_and_no_formulas(
    odd_recipe: dict[str, Any], odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(odd_recipe)
    assert isinstance(result, RunResult)
    shutil.copytree(odd / "test" / NAMES[2], tmp_path / "=new" / "\x1b[2J")
    capsys.readouterr()
    assert main(["predict", str(result.path), "=new", "--out", "p.csv"]) == 0
    assert main(["predict", str(result.path), "=new"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert all(line.startswith("'=new/") for line in printed.splitlines()[1:])
    assert all(Path(image).is_file() for image in read_back(tmp_path / "p.csv")["image"])


def test_the_report_of_a_verification_shows_names_as_text(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        (odd / "test" / name / "broken <b>.png").write_bytes(b"no image")
    assert main(["data", "verify", str(odd), "--out", "report"]) == 1
    assert main(["data", "show", str(odd), "--out", "sheet.png"]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    for text in (capsys.readouterr().out, page, (tmp_path / "report" / "findings.csv").read_text()):
        assert "\x1b" not in text
    assert "<b>" not in page
    assert "<i>" not in page
    assert set(read_back(tmp_path / "report" / "classes.csv")["name"]) >= {"=cmd()", "\x1b[31mred"}


def test_rows_of_a_study_are_escaped_in_every_table_and_plot(
    recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    names = ["=1+1", "a|b", "\x1b[31m", "$x^{$", "two\nlines"]
    study = recipe | {
        "training": {"epochs": 1},
        "grid": {"variants": {name: {} for name in names}},
        "plot": {"x": "overall", "y": ["overall"], "each": "recipe"},
    }
    result = run(study)
    assert isinstance(result, StudyResult)
    assert (result.path / "plot.png").is_file()
    for style in ("markdown", "latex", "csv"):
        text = format_table(result.table, style)
        assert "\x1b" not in text
        assert len(text.splitlines()) == {"markdown": 2, "latex": 6, "csv": 1}[style] + len(names)
    assert read_back(result.path / "table.csv")["recipe"].tolist() == names
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("key", ["title", "x_label", "y_label"])
def test_a_broken_formula_in_a_plot_is_refused_before_the_runs(
    key: str, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    import yaml

    plot = {"x": "overall", "y": ["overall"], key: "$x^{$"}
    study = recipe | {"grid": {"seeds": [0, 1]}, "plot": plot}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["run", "study.yaml"]) == 2
    assert f"`{key}` of a plot must have complete formulas" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))
