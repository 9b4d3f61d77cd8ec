"""A program that does a list of jobs in one process, for tests of what is installed beside the package.

It reads {name: [job, argument, ...]} as JSON, does the jobs in order, and prints {name: outcome}.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import imbalance_vlm
from imbalance_vlm.cli.main import main
from imbalance_vlm.errors import InputError
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training import loop
from imbalance_vlm.training.state import CheckpointTimer

CHECKPOINT = 3
"""Number of the checkpoint after which a run is interrupted."""


def command(*arguments: str) -> str:
    """What a command prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        main(arguments)
    return output.getvalue()


def refusal(do: Callable[[], Any]) -> str:
    """The message of the error; empty for none."""
    try:
        do()
    except InputError as error:
        return str(error)
    return ""


def outcome(result: RunResult) -> dict[str, Any]:
    """What a run left."""
    lines = (result.path / "metrics.jsonl").read_text().splitlines()
    return {
        "path": str(result.path),
        "scores": result.scores,
        "chosen": result.record["chosen"],
        "columns": list(result.table.columns),
        "losses": [json.loads(line)["loss"] for line in lines],
        "weights": hashlib.sha256((result.path / "head.safetensors").read_bytes()).hexdigest(),
        "written": (result.path / "result.json").stat().st_mtime_ns,
    }


def run(recipe: dict[str, Any], runs: str) -> dict[str, Any]:
    result = imbalance_vlm.run(recipe, runs=runs, device="cpu")
    assert isinstance(result, RunResult)
    return outcome(result)


def resume(recipe: dict[str, Any], runs: str, undisturbed: str) -> dict[str, Any]:
    """A run that is interrupted after a checkpoint and resumed, and the same run without an interruption."""
    checkpoints = 0

    class Interrupting(CheckpointTimer):
        def run(self, save: Callable[[], None]) -> None:
            nonlocal checkpoints
            super().run(save)
            checkpoints += 1
            if checkpoints == CHECKPOINT:
                raise KeyboardInterrupt

    with mock.patch.object(loop, "CheckpointTimer", Interrupting), contextlib.suppress(KeyboardInterrupt):
        run(recipe, runs)
    output = io.StringIO()
    with contextlib.redirect_stderr(output):
        resumed = run(recipe, runs)
    return {"resumed": resumed, "undisturbed": run(recipe, undisturbed), "output": output.getvalue()}


JOBS: dict[str, Callable[..., Any]] = {
    "command": command,
    "plan": lambda recipe, overrides=(): refusal(lambda: plan(recipe, overrides)),
    "refused run": lambda recipe, runs: refusal(lambda: run(recipe, runs)),
    "refused prediction": lambda *arguments: refusal(lambda: imbalance_vlm.predict_images(*arguments, device="cpu")),
    "run": run,
    "resume": resume,
    "predict": lambda *arguments: imbalance_vlm.predict_images(*arguments, device="cpu").to_dict("list"),
    "copy": lambda source, target: str(shutil.copyfile(source, target)),
}

if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    outcomes = {name: JOBS[job](*arguments) for name, (job, *arguments) in jobs.items()}
    Path(sys.argv[2]).write_text(json.dumps(outcomes))
