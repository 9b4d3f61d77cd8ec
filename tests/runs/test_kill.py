"""A run that is killed at any moment resumes, and ends as if it had not been. This file is also the program."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import imbalance_vlm
from tests.killing import ENVIRONMENT, kill_when
from tests.runs.running import Recipe, losses, run, run_study, weights

EPOCHS = 40
KILLS = 3
MANY_KILLS = 20
GRID = {"grid": {"variants": {"ce": {"balancing.loss": "cross_entropy"}, "bs": {}}, "seeds": [0, 1]}}


# -- killed once, from the command line ------------------------------------------------------------------------------


def test_killed_run_resumes_and_ends_with_the_same_weights(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["training"] |= {"epochs": EPOCHS, "checkpoint_seconds": 0, "clip_grad_norm": 1.0}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def has_three_epochs() -> bool:
        epochs = [file.read_text().count("\n") for file in Path("killed").rglob("metrics.jsonl")]
        return bool(epochs) and epochs[0] >= 3

    kill_when(path, has_three_epochs)
    assert not list(Path("killed").rglob("result.json"))
    resumed = run(recipe, runs="killed", device="cpu")
    epoch = re.search(r"resuming after epoch (\d+)", capsys.readouterr().err)
    assert epoch
    assert 3 <= int(epoch[1]) < EPOCHS
    undisturbed = run(recipe, runs="undisturbed", device="cpu")
    assert weights(resumed) == weights(undisturbed)
    np.testing.assert_equal(resumed.scores, undisturbed.scores)
    assert losses(resumed) == losses(undisturbed)
    assert len(losses(resumed)) == EPOCHS
    assert not list(resumed.path.parent.rglob("checkpoint.pt"))


def test_killed_study_keeps_its_finished_runs(recipe: Recipe, tmp_path: Path, computed: list[str]) -> None:
    recipe["training"] |= {"epochs": 8, "checkpoint_seconds": 0}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe | GRID))
    kill_when(path, lambda: len(list(Path("killed").rglob("result.json"))) == 2)
    finished = len(list(Path("killed").rglob("result.json")))
    resumed = run_study(recipe | GRID, runs="killed", device="cpu")
    assert len(computed) == 4 - finished < 4
    undisturbed = run_study(recipe | GRID, runs="undisturbed", device="cpu")
    assert [weights(result) for result in resumed.runs] == [weights(result) for result in undisturbed.runs]
    scores = ["recipe", "overall", "overall_std", "many", "medium", "few", "nll"]
    assert resumed.table[scores].equals(undisturbed.table[scores])


# -- killed many times, at any moment --------------------------------------------------------------------------------
def recipes(root: str, encoder: str) -> dict[str, Recipe]:
    """Cached features with every part that has state, images through a frozen tower, and a tower that is trained."""
    shared = {
        "name": "killed",
        "data": {"name": "folder", "root": root},
        "encoder": {"name": encoder},
        "tuning": "linear_probe",
        "evaluation": {"groups": {"many": 12, "few": 6}},
    }
    training = {"epochs": 4, "batch_size": 8, "checkpoint_seconds": 0.001, "ema": 0.9}
    features = {
        "head": {"name": "linear", "adapter": 8},
        "balancing": {"loss": {"name": "paco", "queue": 16}, "sampler": "class_balanced", "second_stage": "crt"},
        "training": training | {"optimizer": "adamw", "clip_grad_norm": 1.0},
    }
    images = {
        "head": {"name": "decoder", "drop": 0.3, "heads": 2, "depth": 1},
        "encoder": {"name": encoder, "cache": False},
        "balancing": {"loss": "seesaw"},
        "training": training | {"accumulate": 2},
    }
    tuned = {
        "head": "cosine",
        "tuning": {"name": "peft", "method": "adaptformer"},
        "balancing": {"loss": "logit_adjustment"},
        "training": training,
    }
    return {"features": shared | features, "images": shared | images, "tuned": shared | tuned}


def fork(recipe: Recipe, folder: Path) -> int:
    """Start a child process that runs the recipe, with its own feature cache; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            sys.stderr = (folder.parent / "stderr.txt").open("a")
            os.environ["IMBALANCE_VLM_CACHE"] = str(folder / "cache")
            imbalance_vlm.run(recipe, runs=folder, device="cpu")
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def is_running(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == 0


def program(recipe: Recipe, folder: Path, kills: int, seed: int) -> None:
    """Run once undisturbed, and once killed `kills` times, at moments drawn from its duration."""
    imbalance_vlm.run(recipe, runs=folder / "warm", device="cpu")  # imports everything: children start at once
    draw = random.Random(seed)
    start = time.monotonic()
    _, status = os.waitpid(fork(recipe, folder / "through"), 0)
    assert status == 0
    duration = time.monotonic() - start
    done = tries = 0
    while done < kills:
        child = fork(recipe, folder / "killed")
        running = True
        if done % 2 == 0:  # while it trains
            while (running := is_running(child)) and not any((folder / "killed").rglob("checkpoint.pt")):
                time.sleep(0.001)
            time.sleep(draw.uniform(0.0, 0.05) * duration)
        else:  # at any moment, also before it trains
            time.sleep(draw.uniform(0.1, 0.9) * duration / (1 + done % 4))
        if running and is_running(child):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
        else:  # it has finished: from the beginning again
            for path in (folder / "killed").rglob("result.json"):
                path.unlink()
        tries += 1
        assert tries < 10 * kills
    _, status = os.waitpid(fork(recipe, folder / "killed"), 0)
    assert status == 0


def assert_same_files(folder: Path) -> None:
    """Weights, predictions, scores and losses of the two runs are the same to the last bit."""
    results = [next((folder / name).rglob("result.json")) for name in ("through", "killed")]
    for name in ("head.safetensors", "predictions.csv"):
        first, second = (path.with_name(name).read_bytes() for path in results)
        assert first == second, name
    records = [json.loads(path.read_text()) for path in results]
    assert records[0]["scores"] == records[1]["scores"]
    histories = [
        [(row["loss"], row["lr"]) for row in map(json.loads, path.with_name("metrics.jsonl").read_text().splitlines())]
        for path in results
    ]
    assert histories[0] == histories[1]


def run_program(recipe: Recipe, folder: Path, kills: int, seed: int = 0) -> str:
    """Run this file as a program, compare what its two runs wrote, and return the notes of its children."""
    arguments = {"recipe": recipe, "folder": str(folder), "kills": kills, "seed": seed}
    completed = subprocess.run(
        [sys.executable, __file__], input=json.dumps(arguments), text=True, env=os.environ | ENVIRONMENT
    )
    notes = (folder / "stderr.txt").read_text()
    assert completed.returncode == 0, notes
    assert_same_files(folder)
    return notes


def test_killed_three_times(images: Path, tiny_clip: str, tmp_path: Path) -> None:
    notes = run_program(recipes(str(images), tiny_clip)["features"], tmp_path, KILLS)
    assert "steps of the next" in notes, "it should have resumed within an epoch"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["features", "images", "tuned"])
def test_killed_twenty_times(kind: str, images: Path, tiny_clip: str, tmp_path: Path) -> None:
    assert "resuming after" in run_program(recipes(str(images), tiny_clip)[kind], tmp_path, MANY_KILLS, seed=1)


if __name__ == "__main__":
    call = json.loads(sys.stdin.read())
    program(call["recipe"], Path(call["folder"]), call["kills"], call["seed"])
