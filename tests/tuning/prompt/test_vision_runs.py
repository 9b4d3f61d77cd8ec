"""Prompt methods that read images in whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from imbalance_vlm import run
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.results.result import RunResult
from tests.tuning.prompt.vision_models import (
    every,
)

SAVED = {
    "vpt": {"inner.weight": (4, 16)} | {f"tower.transformer.resblocks.{i}.vpt.tokens": (2, 32) for i in range(2)},
    "ivlp": {"context": (2, 16), "deep": (1, 2, 16), "tokens": (2, 2, 32)},
    "promptsrc": {"context": (4, 16), "deep": (1, 4, 16), "tokens": (2, 2, 32)},
    "maple": {"context": (2, 16), "deep": (1, 2, 16)}
    | {f"couplings.{i}.{key}": shape for i in range(2) for key, shape in (("weight", (32, 16)), ("bias", (32,)))},
}


def run_of(recipe: dict[str, Any], name: str, runs: Path, **changes: Any) -> RunResult:
    tuning = {"name": "prompt", "method": name} | ({} if name == "maple" else {"tokens": 2})
    plan = {"tuning": tuning, "head": "text", "training.checkpoint_seconds": 0.0, "training.optimizer.lr": 0.05}
    result = run(recipe, plan | changes, runs=runs, device="cpu")
    assert isinstance(result, RunResult)
    return result


@every
def test_a_run_saves_what_was_trained_and_resumes_after_an_interruption(
    recipe: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = run_of(recipe, name, tmp_path / "through")
    saved = load_file(through.path / "head.safetensors")
    assert {key: tuple(value.shape) for key, value in saved.items()} == SAVED[name]
    trained = sum(value.numel() for key, value in saved.items() if key != "inner.weight")
    assert through.record["cost"]["trainable_parameters"] == trained
    lines = (through.path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 3
    assert np.isfinite(losses).all()

    if name not in ("vpt", "maple"):  # one of each kind
        return

    on_epoch = Objective.on_epoch

    def stop(self: Objective, epoch: int, epochs: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        on_epoch(self, epoch, epochs)

    monkeypatch.setattr(Objective, "on_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run_of(recipe, name, tmp_path / "killed")
    monkeypatch.setattr(Objective, "on_epoch", on_epoch)
    resumed = run_of(recipe, name, tmp_path / "killed")
    assert (resumed.path / "head.safetensors").read_bytes() == (through.path / "head.safetensors").read_bytes()
    assert resumed.scores["overall"] == through.scores["overall"]


def test_a_moving_average_and_a_second_stage(recipe: dict[str, Any], tmp_path: Path) -> None:
    changes = {"training.ema": 0.5, "training.epochs": 1, "balancing.second_stage": {"name": "tau_norm", "tau": 0.5}}
    assert np.isfinite(run_of(recipe, "vpt", tmp_path, **changes).scores["overall"])
