"""Runs and studies of a recipe, and what they leave in their folders."""

from __future__ import annotations

import json
from typing import Any

import imbalance_vlm
from imbalance_vlm.results.result import RunResult, StudyResult

Recipe = dict[str, Any]


def run(recipe: Recipe, *overrides: str, changes: Recipe | None = None, **options: Any) -> RunResult:
    """A single run, with overrides as text or as a mapping."""
    result = imbalance_vlm.run(recipe, changes or overrides, **options)
    assert isinstance(result, RunResult)
    return result


def run_study(recipe: Recipe, *overrides: str, changes: Recipe | None = None, **options: Any) -> StudyResult:
    result = imbalance_vlm.run(recipe, changes or overrides, **options)
    assert isinstance(result, StudyResult)
    return result


def weights(result: RunResult) -> bytes:
    return (result.path / "head.safetensors").read_bytes()


def losses(result: RunResult) -> list[float]:
    return [json.loads(line)["loss"] for line in (result.path / "metrics.jsonl").read_text().splitlines()]
