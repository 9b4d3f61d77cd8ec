"""The benchmark of cached features compares two trainings of the same recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.benchmarks import features
from imbalance_vlm.results.result import RunResult


def test_the_time_of_encoding_is_scaled_to_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[dict[str, Any]] = []

    def run(recipe: str, overrides: Mapping[str, Any] | Iterable[str], **_: Any) -> RunResult:
        assert recipe == "icons_lt/linear_probe"
        requested.append(dict(overrides))  # type: ignore[arg-type]
        seconds = 2.0 if "encoder.cache" in requested[-1] else 0.5
        return RunResult(Path(), {"cost": {"train_seconds": seconds}})

    monkeypatch.setattr(features, "run", run)
    report = features.bench_features(epochs=10, live_epochs=2)
    assert requested == [
        {"training.epochs": 1},
        {"training.epochs": 10},
        {"training.epochs": 2, "encoder.cache": False},
    ]
    assert re.search(r"cached features: +0\.5 s", report)
    assert re.search(r"encoding: +10\.0 s \(2 epoch\(s\) timed\)", report)
    assert re.search(r"ratio: +20\.0\n", report)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="`live_epochs` must be at least 1, got 0"):
        features.bench_features(live_epochs=0)


@pytest.mark.slow
def test_the_command_runs_on_icons_lt() -> None:
    assert "ratio:" in features.bench_features(epochs=2)
