"""A run that is killed at any moment goes on and ends as if nothing had happened. This file is also the program."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import imbalance_vlm

KILLS = 3
MANY_KILLS = 20


def recipes(root: str, encoder: str) -> dict[str, dict[str, Any]]:
    """Cached features with everything that has a memory; images through a frozen tower; and a tower under tuning."""
    plain = {
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
    return {"features": plain | features, "images": plain | images, "tuned": plain | tuned}


def forked(recipe: dict[str, Any], folder: Path) -> int:
    """A child that runs the recipe, with a feature cache of its own."""
    child = os.fork()
    if child == 0:
        try:
            sys.stderr = (folder.parent / "said.txt").open("a")
            os.environ["IMBALANCE_VLM_CACHE"] = str(folder / "cache")
            imbalance_vlm.run(recipe, runs=folder, device="cpu")
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def ended(child: int) -> int | None:
    """Exit status of a child, or None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def program(recipe: dict[str, Any], folder: Path, kills: int, seed: int) -> None:
    """Run once undisturbed, and once killed `kills` times, at moments drawn from the time that it took."""
    imbalance_vlm.run(recipe, runs=folder / "warm", device="cpu")  # imports everything: children start at once
    draw = random.Random(seed)
    begun = time.monotonic()
    _, status = os.waitpid(forked(recipe, folder / "through"), 0)
    assert status == 0
    whole = time.monotonic() - begun
    done = tries = 0
    while done < kills:
        child = forked(recipe, folder / "killed")
        time.sleep(draw.uniform(0.1, 0.9) * whole / (1 + done % 4))  # also in the next run's very beginning
        if ended(child) is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
        else:  # it came to its end before: from the beginning again
            for path in (folder / "killed").rglob("result.json"):
                path.unlink()
        tries += 1
        assert tries < 10 * kills
    _, status = os.waitpid(forked(recipe, folder / "killed"), 0)
    assert status == 0


def same_files(folder: Path) -> None:
    """Weights, predictions, scores and losses of the two runs are the same to the last bit."""
    results = {how: next((folder / how).rglob("result.json")) for how in ("through", "killed")}
    for name in ("head.safetensors", "predictions.csv"):
        first, second = (path.with_name(name).read_bytes() for path in results.values())
        assert first == second, name
    records = [json.loads(path.read_text()) for path in results.values()]
    assert records[0]["scores"] == records[1]["scores"]
    histories = [
        [(row["loss"], row["lr"]) for row in map(json.loads, path.with_name("metrics.jsonl").read_text().splitlines())]
        for path in results.values()
    ]
    assert histories[0] == histories[1]


def killed(recipe: dict[str, Any], folder: Path, kills: int, seed: int = 0) -> str:
    """Let the program do it; what its children said."""
    given = {"recipe": recipe, "folder": str(folder), "kills": kills, "seed": seed}
    environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    program = subprocess.run([sys.executable, __file__], input=json.dumps(given), text=True, env=environment)
    said = (folder / "said.txt").read_text()
    assert program.returncode == 0, said
    same_files(folder)
    return said


@pytest.fixture
def two_recipes(images: Path, tiny_clip: str) -> dict[str, dict[str, Any]]:
    return recipes(str(images), tiny_clip)


def test_killed_three_times(two_recipes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    said = killed(two_recipes["features"], tmp_path, KILLS)
    assert "steps of the next" in said, "it should have gone on within an epoch"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["features", "images", "tuned"])
def test_killed_twenty_times(kind: str, two_recipes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert "resuming after" in killed(two_recipes[kind], tmp_path, MANY_KILLS, seed=1)


if __name__ == "__main__":
    wanted = json.loads(sys.stdin.read())
    program(wanted["recipe"], Path(wanted["folder"]), wanted["kills"], wanted["seed"])
