"""`run`: a recipe or a study, by file, name or mapping. Finished runs are read, not run again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from imbalance_vlm.data.prepare import with_draw_seed
from imbalance_vlm.errors import InputError
from imbalance_vlm.escapes import visible
from imbalance_vlm.files import disk_errors, expanded, locked, remove_temporaries, write_json
from imbalance_vlm.launcher import world_size
from imbalance_vlm.progress import bar, note
from imbalance_vlm.recipe.study import EPOCH, Plan, plan
from imbalance_vlm.results.averages import with_averages
from imbalance_vlm.results.comparison import compare
from imbalance_vlm.results.curves import curves
from imbalance_vlm.results.plots import check_formulas, plot
from imbalance_vlm.results.result import RunResult, StudyResult, read_result
from imbalance_vlm.results.tables import columns_of, save_table, score_columns, select, table
from imbalance_vlm.runs.experiment import run_recipe
from imbalance_vlm.runs.identity import run_folder
from imbalance_vlm.runs.preflight import preflight
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.training.checkpoints import CHECKPOINT_FILE
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.training.distributed.processes import join, peer_errors, process_group
from imbalance_vlm.workers import end_with_parent

Recipe = Mapping[str, Any]


def run(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    force: bool = False,
    device: str = "auto",
    jobs: int = 1,
) -> RunResult | StudyResult:
    """Run a recipe or a study and return its result.

    Args:
        recipe: a YAML file, the name of a packaged recipe, or a mapping.
        overrides: "key.path=value" strings, or a mapping with dotted keys.
        runs: folder for the run folders.
        force: run again where a result exists.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        jobs: number of a study's runs at a time, each in its own process with its share of the cores.

    Returns:
        A RunResult for a recipe, a StudyResult for a recipe with a `grid`.

    Raises:
        RecipeError: everything that is wrong with the recipe, before any work.
        InputError: data or weights that are missing or do not fit. All runs of a study are checked before the first one
            trains.
    """
    if jobs < 1:
        raise InputError(f"`jobs` must be at least 1, got {jobs}")
    planned = plan(recipe, overrides)
    resources = Resources(announce=True)
    root = expanded(runs)
    folders = _folders(planned, root, resources)
    if not planned.is_study:
        return _run_or_read(planned.recipes[0], folders[0], force, device, resources)
    draws_plot = _draws_plot(planned)
    todo = [
        resolved
        for resolved, folder in zip(planned.recipes, folders, strict=True)
        if force or read_result(folder) is None
    ]
    if len(todo) > 1:
        preflight(todo, join(device) or resolve_device(device), resources)
    if jobs > 1:
        resources.forget_encoders()  # of the check: they would take memory from the processes that train
        _run_in_processes(planned, folders, force, device, jobs)
        force = False  # the runs are finished; what follows reads them
    results = [
        _run_of_study(resolved, folder, force, device, resources)
        for resolved, folder in _with_progress(planned, folders)
    ]
    return _report(planned, results, root / planned.name, draws_plot)


def _folders(planned: Plan, root: Path, resources: Resources) -> list[Path]:
    """The folder of each run; data and weights that are missing are reported for all runs together."""
    folders, problems = [], []
    for recipe in planned.recipes:
        try:
            folders.append(run_folder(root, recipe, resources))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return folders


def _draws_plot(planned: Plan) -> bool:
    """Whether the study has a plot that can be drawn; a note is printed if it cannot."""
    if planned.plot and not find_spec("matplotlib"):
        note("no plot: it needs matplotlib (pip install 'imbalance_vlm[plot]')")
        return False
    if planned.plot:
        check_formulas(**{key: planned.plot[key] for key in ("title", "x_label", "y_label")})
    return bool(planned.plot)


def _with_progress(planned: Plan, folders: Sequence[Path]) -> Iterator[tuple[Recipe, Path]]:
    """The recipes of a study and their folders, with a progress bar."""
    with bar(len(planned.recipes), planned.name, "run") as progress:
        for recipe, folder in zip(planned.recipes, folders, strict=True):
            progress.set_postfix_str(visible(f"{planned.label(recipe)}, seed {recipe['seed']}"))
            yield recipe, folder
            progress.update()


# -- one run ---------------------------------------------------------------------------------------------------------
def _run_or_read(recipe: Recipe, folder: Path, force: bool, device: str, resources: Resources) -> RunResult:
    if world_size() > 1:
        return _run_distributed(recipe, folder, force, device, resources)
    return _run_locked(recipe, folder, force, device, resources)


def _run_of_study(recipe: Recipe, folder: Path, force: bool, device: str, resources: Resources) -> RunResult:
    """One run of a study, whose errors name the run."""
    try:
        return _run_or_read(recipe, folder, force, device, resources)
    except InputError as error:
        raise InputError(f"{recipe['name']}, seed {recipe['seed']}: {error}") from error


@peer_errors()
def _run_distributed(recipe: Recipe, folder: Path, force: bool, device: str, resources: Resources) -> RunResult:
    """One run over the processes that a launcher started: process 0 writes the folder, the others a temporary one."""
    own_device = str(join(device))
    group = process_group()
    finished: RunResult | None = group.broadcast(read_result(folder) if group.is_main and not force else None)
    if finished is not None:
        return finished
    if group.is_main:
        return group.broadcast(_run_locked(recipe, folder, force, own_device, resources))
    with _temporary_folder() as temporary:
        return group.broadcast(_run_locked(recipe, temporary / folder.name, force, own_device, resources))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder, made if it does not exist, that no other process writes to at the same time."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{folder.name}.lock"):
        yield


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for what a process other than process 0 writes; those of processes that were killed are removed."""
    for lock in Path(tempfile.gettempdir()).glob("imbalance_vlm-rank.*/lock"):
        with suppress(OSError, InputError, Timeout), locked(lock, timeout=0):
            shutil.rmtree(lock.parent)
    with tempfile.TemporaryDirectory(prefix="imbalance_vlm-rank.") as folder, locked(Path(folder) / "lock"):
        yield Path(folder)


def _run_locked(recipe: Recipe, folder: Path, force: bool, device: str, resources: Resources) -> RunResult:
    if not force and (finished := read_result(folder)):
        with suppress(OSError):  # the folder may be read-only
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)  # of a run that was killed right after its result
        return finished
    # Read first: the run's folder may lie in the dataset's, and bad data shall leave nothing behind.
    resources.dataset(with_draw_seed(recipe["data"], recipe["seed"]))
    with _writing(folder):
        if not force and (finished := read_result(folder)):  # another process has run it meanwhile
            return finished
        if force:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        try:
            remove_temporaries(folder)
            return run_recipe(recipe, folder, resolve_device(device), resources)
        except InputError:
            with suppress(OSError):  # it is not empty where it holds a checkpoint to resume from
                folder.rmdir()
            raise


# -- many runs -------------------------------------------------------------------------------------------------------
def _run_in_processes(planned: Plan, folders: Sequence[Path], force: bool, device: str, jobs: int) -> None:
    """Run a study in `jobs` processes; the first error stops what has not begun."""
    threads = max(1, (os.cpu_count() or jobs) // jobs)
    # Processes are spawned: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, (threads,))
    try:
        futures = [
            pool.submit(_run_in_worker, recipe, folder, force, device)
            for recipe, folder in zip(planned.recipes, folders, strict=True)
        ]
        with bar(len(futures), planned.name, "run") as progress:
            for future in as_completed(futures):
                future.result()
                progress.update()
    except BrokenProcessPool as error:
        raise InputError(
            "a process of the study has died, perhaps for lack of memory; start it again with fewer `jobs`: finished "
            "runs are kept, and the others resume"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)


@cache
def _resources_of_worker() -> Resources:
    """What the runs of one process of the pool share; the process ends with the pool."""
    return Resources()


def _run_in_worker(recipe: Recipe, folder: Path, force: bool, device: str) -> RunResult:
    return _run_of_study(recipe, folder, force, device, _resources_of_worker())


def _report(planned: Plan, results: list[RunResult], folder: Path, draws_plot: bool) -> StudyResult:
    """Write the table and the plot of the study into its folder."""
    full, columns = table(results), columns_of(results)
    if planned.table.get("baseline"):
        full = compare(full, results, planned.table["baseline"], planned.table["score"])
    full["recipe"] = full["recipe"].str.removeprefix(planned.name + "/")
    places = planned.coordinates()
    if planned.table.get("average"):
        full = with_averages(full, places, planned.table["average"], score_columns(results))
    shown = select(full, planned.table.get("columns"), planned.table.get("sort"), columns)
    with _writing(folder):
        remove_temporaries(folder, recursive=False)
        save_table(full, folder / "table.csv", columns)
        save_table(shown, folder / "table.md", columns)
        write_json(
            folder / "study.json", {"name": planned.name, "runs": [str(r.path.relative_to(folder)) for r in results]}
        )
        if planned.plot and draws_plot:
            frame = curves(results) if planned.plot["x"] == EPOCH else full
            for column in next(iter(places.values())):
                if column not in frame.columns:
                    frame[column] = [places.get(row, {}).get(column) for row in frame["recipe"]]
            plot(frame, folder / "plot.png", **planned.plot)
    return StudyResult(folder, results, shown)
