"""`run`: one table on standard output, notes on standard error."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_vlm.cli.main import main

Capture = pytest.CaptureFixture[str]


def test_run_prints_one_table(recipe_file: str, capsys: Capture) -> None:
    assert main(["run", recipe_file, "training.epochs=2", "--runs", "out", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("|") for line in lines)
    assert "| balanced_softmax |" in lines[2]
    assert "results: out/tiny/seed0-" in captured.err


def test_run_of_a_study_prints_its_rows_and_names_its_plot(recipe_file: str, capsys: Capture) -> None:
    Path("study.yaml").write_text(
        f"include: {recipe_file}\n"
        "grid: {variants: {a: {}, b: {head: cosine}}, seeds: [0, 1]}\n"
        "table: {columns: [recipe, head, overall]}\n"
        "plot: {x: train_seconds, y: [overall]}\n"
    )
    assert main(["run", "study.yaml"]) == 0
    captured = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in captured.out.splitlines()]
    assert rows[0] == ["recipe", "head", "overall"]
    assert [row[:2] for row in rows[2:]] == [["a", "linear"], ["b", "cosine"]]
    assert "plot: runs/study/plot.png" in captured.err
    assert "results: runs/study" in captured.err


def test_only_the_first_of_several_processes_prints(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["run", recipe_file]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "results: " not in captured.err


def test_the_folder_of_runs_may_start_at_the_home_folder(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["run", recipe_file, "--runs=~/r"]) == 0
    assert f"results: {tmp_path}/home/r/tiny/seed0-" in capsys.readouterr().err
    assert not Path("~").exists()


def test_a_folder_of_runs_that_cannot_be_made_is_refused(recipe_file: str, capsys: Capture) -> None:
    assert main(["run", recipe_file, "--runs", "/proc/x"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: /proc/x/tiny/seed0-")
    assert "cannot be written: No such file or directory; " in error


def test_a_run_says_how_many_images_it_uses(recipe_file: str, capsys: Capture) -> None:
    assert main(["run", recipe_file]) == 0
    assert "colours: 65 images of 4 classes used\n" in capsys.readouterr().err
