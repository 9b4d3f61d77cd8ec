"""`imbalance-vlm run`."""

from __future__ import annotations

import argparse
from typing import Any

from imbalance_vlm import launcher
from imbalance_vlm.cli.common import command, path

SHOWN = ("recipe", "dataset", "encoder", "tuning", "head", "balancing", "overall", "many", "medium", "few")
"""Columns of a single run's table."""


def add(commands: Any) -> None:
    parser = command(commands, "run", run, "run a recipe or a study and print its table")
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe (`imbalance-vlm ls recipes`)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="changes to the recipe, such as training.epochs=5"
    )
    parser.add_argument("--runs", type=path, default="runs", help="folder for the run folders (default: runs)")
    parser.add_argument("--force", action="store_true", help="run again where a result exists")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--jobs", type=int, default=1, help="number of runs of a study that run in parallel (default 1)"
    )


def run(options: argparse.Namespace) -> None:
    from imbalance_vlm.progress import bar, note

    note(f"{options.recipe}: loading ...")
    with bar(2, "load", "step") as progress:  # imports take seconds: show that something happens
        from imbalance_vlm.results.result import StudyResult
        from imbalance_vlm.results.tables import markdown, select

        progress.update()
        from imbalance_vlm.runs import study

        progress.update()

    result = study.run(
        options.recipe,
        options.overrides,
        runs=options.runs,
        force=options.force,
        device=options.device,
        jobs=options.jobs,
    )
    if launcher.rank() > 0:  # only the first of several processes prints
        return
    if isinstance(result, StudyResult):
        print(markdown(result.table), end="")
        if (result.path / "plot.png").is_file():
            note(f"plot: {result.path / 'plot.png'}")
    else:
        print(markdown(select(result.table, [name for name in SHOWN if name in result.table.columns])), end="")
    note(f"results: {result.path}")
