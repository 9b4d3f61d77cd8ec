"""`run`: a recipe or a study, by file, name or mapping. Finished runs are read, not run again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import disk_errors, write_json
from imbalance_vlm.progress import bar, note
from imbalance_vlm.recipe.study import Plan, coordinates, plan
from imbalance_vlm.results.folder import run_folder
from imbalance_vlm.results.result import RunResult, StudyResult, read_result


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] | Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    force: bool = False,
    device: str = "auto",
    jobs: int = 1,
) -> RunResult | StudyResult:
    """Run a recipe or a study and return what came out.

    Args:
        recipe: a YAML file, the name of a packaged recipe, or a mapping.
        overrides: "key.path=value" strings, or a mapping with dotted keys.
        runs: folder that takes the run folders.
        force: run again what is finished already.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        jobs: runs of a study at a time, each in a process of its own with its share of the cores.

    Returns:
        A RunResult for a recipe, a StudyResult for a recipe with a `grid`.

    Raises:
        RecipeError: everything that is wrong with the recipe, before any work.
        InputError: data or weights that are missing or do not fit.
    """
    return _run(plan(recipe, overrides), Path(runs), force, device, jobs)


def _run(wanted: Plan, root: Path, force: bool, device: str, jobs: int) -> RunResult | StudyResult:
    folders = _folders(wanted, root)
    if wanted.plot and not find_spec("matplotlib"):
        note("no plot: it needs matplotlib (pip install 'imbalance_vlm[plot]')")
        wanted = replace(wanted, plot=None)
    if jobs < 1:
        raise InputError(f"`jobs` must be at least 1, got {jobs}")
    if jobs > 1 and wanted.is_study:
        _in_processes(wanted, folders, force, device, jobs)
        force = False  # what follows reads what they have written
    results = [_run_or_read(one, folder, force, device) for one, folder in _announced(wanted, folders)]
    if not wanted.is_study:
        return results[0]
    return _report(wanted, results, root / wanted.name)


def _folders(wanted: Plan, root: Path) -> list[Path]:
    """The folder of each run; finding them looks at all data and weights, and reports all that is missing at once."""
    folders, wrong = [], []
    for one in wanted.recipes:
        try:
            folders.append(run_folder(root, one))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(dict.fromkeys(wrong)))
    return folders


def _announced(wanted: Plan, folders: list[Path]) -> Iterable[tuple[dict[str, Any], Path]]:
    """The recipes of a plan and their folders, with a bar over those of a study."""
    if not wanted.is_study:
        yield from zip(wanted.recipes, folders, strict=True)
        return
    with bar(len(wanted.recipes), wanted.name, "run") as progress:
        for one, folder in zip(wanted.recipes, folders, strict=True):
            progress.set_postfix_str(f"{one['name'].removeprefix(wanted.name + '/')}, seed {one['seed']}")
            yield one, folder
            progress.update()


def _in_processes(wanted: Plan, folders: list[Path], force: bool, device: str, jobs: int) -> None:
    """Run a study's recipes in `jobs` processes; the first mistake stops what has not begun."""
    threads = max(1, (os.cpu_count() or jobs) // jobs)
    # A process of its own, not a fork: torch's threads do not survive one.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _set_threads, (threads,))
    try:
        under_way = [
            pool.submit(_run_or_read, one, folder, force, device)
            for one, folder in zip(wanted.recipes, folders, strict=True)
        ]
        with bar(len(under_way), wanted.name, "run") as progress:
            for finished in as_completed(under_way):
                finished.result()
                progress.update()
    finally:
        pool.shutdown(cancel_futures=True)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _run_or_read(recipe: dict[str, Any], folder: Path, force: bool, device: str) -> RunResult:
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return _run_together(recipe, folder, force, device)
    return _run_alone(recipe, folder, force, device)


def _run_together(recipe: dict[str, Any], folder: Path, force: bool, device: str) -> RunResult:
    """One run over the processes that a launcher started: the first writes the folder, the others a throwaway one."""
    from imbalance_vlm.training import devices

    own = str(devices.start(device))
    together = devices.current()
    finished: RunResult | None = together.same(read_result(folder) if together.main and not force else None)
    if finished is not None:
        return finished
    if together.main:
        return together.same(_run_alone(recipe, folder, force, own))
    with tempfile.TemporaryDirectory() as place:
        return together.same(_run_alone(recipe, Path(place) / folder.name, force, own))


def _run_alone(recipe: dict[str, Any], folder: Path, force: bool, device: str) -> RunResult:
    if not force and (finished := read_result(folder)):
        return finished
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder.parent / f".{folder.name}.lock")):
        if not force and (finished := read_result(folder)):  # another process was at it
            return finished
        if force:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        from imbalance_vlm.pipeline import run_one
        from imbalance_vlm.training.devices import named

        try:
            return run_one(recipe, folder, named(device))
        except InputError:
            with suppress(OSError):  # of a folder that has a checkpoint to go on from
                folder.rmdir()
            raise


def _report(wanted: Plan, results: list[RunResult], folder: Path) -> StudyResult:
    """Write the study's table (and plot) beside its runs."""
    from imbalance_vlm.results.averages import with_averages
    from imbalance_vlm.results.comparison import compare
    from imbalance_vlm.results.tables import save_table, select, table

    full = table(results)
    if wanted.table.get("baseline"):
        full = compare(full, results, wanted.table["baseline"], wanted.table.get("score") or "overall")
    full["recipe"] = full["recipe"].str.removeprefix(wanted.name + "/")
    if wanted.table.get("average"):
        full = with_averages(full, coordinates(wanted), wanted.table["average"])
    shown = select(full, wanted.table.get("columns"), wanted.table.get("sort"))
    save_table(full, folder / "table.csv")
    save_table(shown, folder / "table.md")
    write_json(folder / "study.json", {"name": wanted.name, "runs": [str(r.path.relative_to(folder)) for r in results]})
    if wanted.plot:
        from imbalance_vlm.results.curves import curves
        from imbalance_vlm.results.plots import plot

        frame = curves(results) if wanted.plot["x"] == "epoch" else full
        places = coordinates(wanted)
        for column in next(iter(places.values())):
            if column not in frame.columns:
                frame[column] = [places.get(row, {}).get(column) for row in frame["recipe"]]
        plot(frame, folder / "plot.png", **wanted.plot)
    return StudyResult(folder, results, shown)
