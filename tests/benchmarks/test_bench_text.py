"""The benchmark of the text tower's savings, on a tiny tower."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import open_clip
import pytest

from imbalance_vlm.benchmarks import text as bench
from imbalance_vlm.errors import InputError
from tests.conftest import TINY_CLIP


@pytest.fixture
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture with a longer context, and measurements in this process."""
    model: dict[str, Any] = {**TINY_CLIP["model_cfg"]}
    model["text_cfg"] = {**model["text_cfg"], "context_length": 40}
    config = tmp_path / "ViT-tiny-bench.json"
    config.write_text(json.dumps(model))
    open_clip.add_model_config(config)
    monkeypatch.setattr(bench, "_measured", lambda **case: bench.measure(**case))
    return "ViT-tiny-bench"


def test_every_way_is_measured_or_its_memory_is_stated(tiny_model: str) -> None:
    printed = bench.bench_text([12], [4, 16], model=tiny_model)
    assert printed.count("GiB process") == 8
    assert printed.count("x less") == 12
    small = bench.bench_text([2000], [4], model=tiny_model, memory_gb=1e-3, limit_gb=0.01)
    assert small.count("does not fit in 0.01 GiB (needs about") == 3
    assert small.count("GiB process") == 1
    assert "x less" not in small


def test_names_are_spread_and_distinct() -> None:
    assert len(set(bench.names_for(8142))) == 8142
    assert bench.names_for(2, ["a", "b", "c", "d"]) == ["a", "c"]
    with pytest.raises(InputError, match="from 1 to the number of names, 2, got 3"):
        bench.names_for(3, ["a", "b"])


def test_a_killed_measurement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: killed)
    with pytest.raises(InputError, match="exit status -9, perhaps out of memory; choose fewer"):
        bench.bench_text([2], [4])


def test_a_model_other_than_a_clip_is_refused() -> None:
    for model in ("coca_ViT-B-32", "ViT-Q-16"):
        with pytest.raises(InputError, match="must be a CLIP architecture"):
            bench.bench_text([2], [4], model=model)


def test_names_are_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "names.txt"
    file.write_text("red apple\n\n blue car \n")
    cases: list[dict[str, Any]] = []
    monkeypatch.setattr(bench, "_measured", lambda **case: cases.append(case) or {"needs_gb": 1.0})
    bench.bench_text([2], [4], names=file)
    assert {tuple(case["names"]) for case in cases} == {("red apple", "blue car")}
    with pytest.raises(InputError, match="from 1 to the number of names, 2, got 3"):
        bench.bench_text([2, 3], [4], names=file)
    with pytest.raises(InputError, match="`names` must be a UTF-8 text file of class names, got .*missing.txt"):
        bench.bench_text([2], [4], names=tmp_path / "missing.txt")
