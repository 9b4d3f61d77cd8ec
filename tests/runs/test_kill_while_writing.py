"""A run that is killed at each step of writing its files ends with the same files. This file is also the program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imbalance_vlm
from tests.killing import ENVIRONMENT

Recipe = dict[str, Any]
CALLS = ("replace", "unlink")
ALL_CALLS = (*CALLS, "fsync", "mkdir")
"""The calls of the system that write results, before each of which a run is killed."""


def fork(recipe: Recipe, runs: Path, calls: int | None, names: Sequence[str] = CALLS) -> int:
    """Run in a child that kills itself at its `calls`-th call of the system; returns its exit status."""
    child = os.fork()
    if child == 0:
        remaining = float("inf") if calls is None else calls

        def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **settings: Any) -> Any:
                nonlocal remaining
                if remaining == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                remaining -= 1
                return plain(*arguments, **settings)

            return call

        for name in names:
            setattr(os, name, counted(getattr(os, name)))
        try:
            imbalance_vlm.run(recipe, runs=runs, device="cpu")
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def contents(runs: Path) -> dict[str, Any]:
    """The files of a run; without what differs from run to run."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file() and path.suffix != ".lock"):
        name = str(path.relative_to(runs))
        if path.name == "result.json":
            record = json.loads(path.read_text())
            files[name] = record["scores"], record["chosen"]
        elif path.name == "metrics.jsonl":
            files[name] = [(row["loss"], row["lr"]) for row in map(json.loads, path.read_text().splitlines())]
        elif path.suffix in (".csv", ".md", ".json") and path.parent.parent == runs:  # the study's tables hold seconds
            files[name] = None
        else:
            files[name] = path.read_bytes()
    return files


def program(recipe: Recipe, folder: Path, names: Sequence[str]) -> None:
    imbalance_vlm.run(recipe, runs=folder / "warm", device="cpu")  # imports everything, and fills the feature cache
    assert fork(recipe, folder / "through", None) == 0
    expected, kills = contents(folder / "through"), 0
    while True:
        runs = folder / f"killed at {kills}"
        status = fork(recipe, runs, kills, names)
        if status == 0:
            break
        assert status == 9, status
        assert fork(recipe, runs, None) == 0
        np.testing.assert_equal(contents(runs), expected, err_msg=f"killed at call {kills}")
        kills += 1
    print(kills)


STAGE = {"loss": "cross_entropy", "second_stage": {"name": "crt", "epochs": 1}}
CASES: dict[str, Recipe] = {
    "study with a second stage": {"balancing": STAGE, "grid": {"seeds": [0]}},
    "first pass": {
        "balancing": {"loss": "cross_entropy", "gradient": {"name": "subspace", "keep": 2, "rank": 1}},
        "training": {"epochs": 2},
    },
}


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("study with a second stage", CALLS),
        pytest.param("study with a second stage", ALL_CALLS, marks=pytest.mark.slow),
        pytest.param("first pass", ALL_CALLS, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_each_step_of_writing_leaves_the_same_files(
    case: str, names: Sequence[str], recipe: Recipe, tmp_path: Path
) -> None:
    recipe |= CASES[case]
    training = {"epochs": 1, "batch_size": 32, "checkpoint_seconds": 0}
    recipe["training"] = training | CASES[case].get("training", {})
    arguments = json.dumps({"recipe": recipe, "folder": str(tmp_path), "names": names})
    completed = subprocess.run(
        [sys.executable, __file__], input=arguments, capture_output=True, text=True, env=os.environ | ENVIRONMENT
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert int(completed.stdout.split()[-1]) > 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    call = json.loads(sys.stdin.read())
    program(call["recipe"], Path(call["folder"]), call["names"])
