"""`table` and `predict`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from imbalance_vlm.cli.main import main
from imbalance_vlm.escapes import from_csv_cell

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


@pytest.fixture
def new(images: Path, tmp_path: Path) -> Path:
    """Two images to classify, and a file of macOS."""
    folder = tmp_path / "new"
    shutil.copytree(images / "test" / "white_cup", folder, ignore=lambda _, names: [n for n in names if n > "1.png"])
    (folder / "._0.png").write_bytes(b"\0\5\26\7")
    return folder


def predict(*arguments: str) -> int:
    run = next(Path("runs").rglob("result.json")).parent
    return main(["predict", str(run), *arguments, "--device", "cpu"])


@pytest.mark.usefixtures("finished")
def test_hidden_files_are_passed_over_and_counted(new: Path, capsys: Capture) -> None:
    (new / "notes.txt").touch()
    (new / "again.png").symlink_to("0.png")
    (new / "loop").symlink_to(".")
    assert predict(str(new), str(new / "1.png")) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert "2 images classified; 4 files passed over: 2 linked twice, 1 .txt, 1 hidden\n" in printed.err


@pytest.mark.usefixtures("finished")
def test_unreadable_images_are_refused_or_skipped(new: Path, capsys: Capture) -> None:
    (new / "zero.png").touch()
    assert predict(str(new)) == 2
    assert "1 image cannot be read:\n" in capsys.readouterr().err
    assert predict(str(new), "--on-error", "skip") == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert "2 images classified; 1 skipped; 1 file passed over: 1 hidden\n1 image cannot be read:\n" in printed.err
    assert predict(str(new / "zero.png"), "--on-error", "skip") == 2


@pytest.mark.usefixtures("finished")
def test_a_name_that_is_no_text_can_be_read_back(new: Path, capsys: Capture) -> None:
    odd = os.fsdecode(os.fsencode(new) + b"/caf\xe9.png")
    os.rename(new / "0.png", odd)
    assert predict(str(new), "--out", "predicted.csv") == 0
    names = pd.read_csv("predicted.csv")["image"].tolist()
    assert names[1].endswith(r"caf\udce9.png")
    assert sorted(map(from_csv_cell, names)) == sorted([odd, str(new / "1.png")])
    capsys.readouterr()
    assert predict(odd) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"'{new}/caf\\udce9.png,")


@pytest.mark.usefixtures("finished")
def test_every_path_may_start_at_the_home_folder(new: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("HOME", str(new.parent))
    assert predict("~/new", "--out", "~/predicted.csv") == 0
    assert main(["table", "~/runs", "--out", "~/table.md"]) == 0
    assert main(["data", "show", "~/images", "--out", "~/sheet.png"]) == 2  # a folder that does not exist
    assert {"predicted.csv", "table.md"} <= set(os.listdir(new.parent))
    assert not Path("~").exists()
    capsys.readouterr()


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("option", [["--out", "~nobody_here/x.csv"], ["--out", "x" * 300]], ids=["user", "length"])
def test_paths_that_no_file_can_have_are_refused(option: list[str], new: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        predict(str(new), *option)
    assert "error: argument --out: the path" in capsys.readouterr().err
