"""Recipes and studies: what is run, what is read, and where it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imbalance_vlm
from imbalance_vlm import InputError
from imbalance_vlm.runs import study as study_module
from tests.runs.running import Recipe, run, run_study, weights

PLOT = {"plot": {"x": "train_seconds", "y": ["overall"]}}
GRID = {"grid": {"variants": {"ce": {"balancing.loss": "cross_entropy"}, "bs": {}}, "seeds": [0, 1]}}


# -- finished runs ---------------------------------------------------------------------------------------------------
def test_finished_run_is_read(recipe: Recipe, computed: list[str]) -> None:
    first, second = run(recipe), run(recipe)
    assert computed == ["tiny 0"]
    assert first.path == second.path
    np.testing.assert_equal(second.scores, first.scores)


def test_force_runs_again_in_an_empty_folder(recipe: Recipe, computed: list[str]) -> None:
    first = run(recipe)
    (first.path / "old_file.txt").touch()
    assert weights(run(recipe, force=True)) == weights(first)
    assert len(computed) == 2
    assert not (first.path / "old_file.txt").exists()


def test_force_runs_every_run_of_a_study_again(recipe: Recipe, computed: list[str]) -> None:
    for _ in range(2):
        run_study(recipe | GRID, "training.epochs=1", force=True)
    assert computed == ["tiny/ce 0", "tiny/ce 1", "tiny/bs 0", "tiny/bs 1"] * 2


def test_changed_images_are_another_run(recipe: Recipe, tmp_path: Path) -> None:
    root = Path(shutil.copytree(recipe["data"]["root"], tmp_path / "copy"))
    before = run(recipe, f"data.root={root}")
    for file in list((root / "test" / "red_apple").iterdir())[1:]:
        file.unlink()
    after = run(recipe, f"data.root={root}")
    assert (before.record["images"]["test"], after.record["images"]["test"]) == (20, 16)


def test_damaged_result_is_an_error_with_a_remedy(recipe: Recipe) -> None:
    path = run(recipe).path / "result.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match=r"result\.json must hold JSON.*--force"):
        run(recipe)
    assert run(recipe, force=True).scores["overall"] >= 0


def test_resolved_recipe_is_the_same_run(recipe: Recipe, computed: list[str]) -> None:
    first = run(recipe)
    again = imbalance_vlm.run(first.path / "recipe.resolved.yaml")
    assert again.path == first.path
    assert len(computed) == 1


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has the device")
def test_finished_run_is_read_on_a_machine_without_its_device(recipe: Recipe) -> None:
    run(recipe)
    run_study(recipe | GRID)
    run(recipe, device="cuda:7")
    run_study(recipe | GRID, device="cuda:7")


# -- studies ---------------------------------------------------------------------------------------------------------
def test_finished_runs_of_a_study_are_read(recipe: Recipe, computed: list[str]) -> None:
    first = run_study(recipe | GRID)
    assert computed == ["tiny/ce 0", "tiny/ce 1", "tiny/bs 0", "tiny/bs 1"]
    again = run_study(recipe | GRID)
    assert len(computed) == 4
    assert first.table.equals(again.table)
    assert {path.name for path in first.path.iterdir()} >= {"table.csv", "table.md", "study.json", "ce", "bs"}
    listed = json.loads((first.path / "study.json").read_text())
    assert [first.path / folder for folder in listed["runs"]] == [result.path for result in first.runs]


def test_missing_runs_of_a_study_are_run(recipe: Recipe, computed: list[str]) -> None:
    first = run_study(recipe | GRID)
    shutil.rmtree(first.runs[2].path)
    run_study(recipe | GRID)
    assert computed[4:] == ["tiny/bs 0"]


def test_table_of_a_study_is_mean_and_deviation_over_seeds(recipe: Recipe) -> None:
    result = run_study(recipe | GRID)
    assert list(result.table["recipe"]) == ["ce", "bs"]
    assert list(result.table["n"]) == [2, 2]
    assert list(result.table["seeds"]) == ["0,1", "0,1"]
    for row, runs in enumerate((result.runs[:2], result.runs[2:])):
        scores = [result.scores["overall"] for result in runs]
        assert result.table["overall"][row] == pytest.approx(np.mean(scores))
        assert result.table["overall_std"][row] == pytest.approx(np.std(scores, ddof=1))


def test_run_of_a_study_has_the_numbers_of_the_run_alone(recipe: Recipe) -> None:
    alone = run(recipe, "seed=1", "name=tiny/bs", runs="alone")
    of_study = run_study(recipe | GRID, runs="study").runs[3]
    assert of_study.path.relative_to("study") == alone.path.relative_to("alone")
    assert weights(of_study) == weights(alone)


def test_missing_matplotlib_is_reported_before_the_runs(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(study_module, "find_spec", lambda name: None)
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "preflight", stop)
        with pytest.raises(StoppedError):
            run_study(recipe | GRID | PLOT)
    assert "no plot: it needs matplotlib" in capsys.readouterr().err
    result = run_study(recipe | GRID | PLOT, "training.epochs=1")
    assert not (result.path / "plot.png").exists()


# -- several processes -----------------------------------------------------------------------------------------------
def test_jobs_give_the_results_of_one_process(recipe: Recipe) -> None:
    seeds = {"grid": {"seeds": [0, 1]}}
    serial, parallel = (
        run_study(recipe | seeds, "training.epochs=2", runs=f"jobs{jobs}", jobs=jobs) for jobs in (1, 2)
    )
    for name, scores in serial.scores.items():
        assert parallel.scores[name] == pytest.approx(scores, nan_ok=True)
    assert [run.path.name for run in parallel.runs] == [run.path.name for run in serial.runs]
    assert [weights(run) for run in parallel.runs] == [weights(run) for run in serial.runs]


@pytest.mark.parametrize("jobs", [1, 2])
def test_error_of_a_run_is_the_error_of_the_study_and_names_the_run(recipe: Recipe, jobs: int) -> None:
    """One that only training shows."""
    diverging = recipe | {"training": recipe["training"] | {"optimizer": {"name": "sgd", "lr": 1e38}}}
    diverging["head"] = {"name": "linear", "normalise": False}
    with pytest.raises(InputError, match=r"^tiny, seed [01]: the training loss became"):
        imbalance_vlm.run(diverging | {"grid": {"seeds": [0, 1]}}, jobs=jobs)
    assert not list(Path("runs").rglob("result.json"))


@pytest.mark.parametrize("grid", [{}, {"grid": {"seeds": [0, 1]}}])
def test_less_than_one_job_is_refused(recipe: Recipe, grid: Recipe) -> None:
    with pytest.raises(InputError, match="`jobs` must be at least 1, got 0"):
        imbalance_vlm.run(recipe | grid, jobs=0)


# -- what can go wrong -----------------------------------------------------------------------------------------------
def test_missing_data_of_all_runs_are_reported_at_once(recipe: Recipe, computed: list[str]) -> None:
    variants = {"a": {"data.root": "nowhere"}, "b": {"data.root": "neither"}, "c": {}}
    with pytest.raises(InputError, match=r"nowhere[\s\S]*neither"):
        imbalance_vlm.run(recipe | {"grid": {"variants": variants}})
    assert computed == []


def test_unwritable_runs_folder_is_reported_before_any_work(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if "forbidden" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match="forbidden.* cannot be written: Permission denied.*choose another folder"):
        run(recipe, runs="forbidden")
    assert computed == []


def test_two_processes_run_a_recipe_once(recipe: Recipe, computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the lock, and then finds the result of the first."""
    first = run(recipe)
    result = (first.path / "result.json").read_bytes()
    (first.path / "result.json").unlink()
    lock = study_module.locked

    def finished_meanwhile(path: Path) -> Any:
        (first.path / "result.json").write_bytes(result)
        return lock(path)

    monkeypatch.setattr(study_module, "locked", finished_meanwhile)
    assert run(recipe).scores == pytest.approx(first.scores, nan_ok=True)
    assert computed == ["tiny 0"]
