"""`table` and `predict`."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_vlm.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("style", "start"),
    [("markdown", "| recipe"), ("md", "| recipe"), ("latex", r"\begin{tab"), ("tex", r"\begin"), ("csv", "recipe,")],
)
def test_table_in_every_format(style: str, start: str, capsys: Capture) -> None:
    assert main(["table", "--format", style, "--columns", "recipe,head,overall,few", "--sort", "overall"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(start)
    assert "cosine" in output
    assert "linear" in output


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("suffix", ["md", "tex", "csv"])
def test_table_in_a_file(suffix: str, capsys: Capture) -> None:
    assert main(["table", "runs", "--out", f"table.{suffix}"]) == 0
    assert capsys.readouterr().out == ""
    assert "balanced" in Path(f"table.{suffix}").read_text()


@pytest.mark.usefixtures("finished")
def test_predictions_as_csv(images: Path, capsys: Capture) -> None:
    run = next(Path("runs").rglob("result.json")).parent
    image = next((images / "test").rglob("*.png"))
    assert main(["predict", str(run), str(image), "--device", "cpu"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header == "image,predicted,confidence"
    assert line.startswith(f"{image},")
    assert main(["predict", str(run), str(images / "test"), "--out", "predicted.csv"]) == 0
    assert capsys.readouterr().out == ""
    assert len(Path("predicted.csv").read_text().splitlines()) == 21
