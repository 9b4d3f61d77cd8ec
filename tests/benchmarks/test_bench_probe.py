"""The probe at many classes: its report, and that nothing in it has a size of classes x classes."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.benchmarks import probe
from imbalance_vlm.benchmarks.measurement import peak_bytes_on_cpu
from imbalance_vlm.benchmarks.probe import bench_probe, scores, source, tailed, vectors
from imbalance_vlm.cli.main import main
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.long_tail import LongTail


def test_the_command_prints_times_memory_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--images", "400", "--classes", "30", "--width", "8", "--test-images", "60", "--batch", "64"]
    assert main(["bench", "probe", *small]) == 0
    report = capsys.readouterr().out
    assert "30 classes, 400 vectors of 8 in float16, batch 64" in report
    for what in ("into the cache", "training", "evaluation", "table"):
        assert re.search(rf"{what}: +[\d.]+ s", report), what
    assert re.search(r"peak memory: +[\d.]+ GB \(within 8 GB\)", report)
    assert report.splitlines()[-3].startswith("| dataset | tuning")
    assert "| random  | linear_probe | linear | balanced_softmax |" in report


def test_every_class_has_a_vector_and_the_tail_is_long() -> None:
    counts = np.bincount(tailed(50_000, 500, 0), minlength=500)
    assert counts.sum() == 50_000
    assert counts.min() >= 1
    assert 100 < counts.max() / counts.min() < 1000
    assert counts[:50].sum() > 10 * counts[-50:].sum()


def test_a_row_does_not_depend_on_the_start() -> None:
    """A killed run that resumes must write what it would have written."""
    all_rows = np.concatenate(list(vectors(3000, 4, 1, 0)))
    rest = np.concatenate(list(vectors(3000, 4, 1, 2048)))
    assert all_rows.shape == (3000, 4)
    assert all_rows.dtype == np.float16
    np.testing.assert_array_equal(all_rows[2048:], rest)


def test_vectors_are_read_from_the_cache_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tailed(100, 5, 0)
    first = source(tmp_path, "train", labels, 4, torch.device("cpu"))

    def refuse(*_: object) -> None:
        raise AssertionError("generated a second time")

    monkeypatch.setattr(probe, "vectors", refuse)
    again = source(tmp_path, "train", labels, 4, torch.device("cpu"))
    torch.testing.assert_close(first.views[0], again.views[0])
    assert next(iter(first.batches([torch.arange(3)])))[0].dtype == torch.float32


CLASSES = 3000


@pytest.fixture
def tail() -> LongTail:
    counts = np.bincount(tailed(6000, CLASSES, 0), minlength=CLASSES)
    return LongTail(counts, tuple(map(str, range(CLASSES))))


def test_evaluation_allocates_nothing_of_classes_times_classes(tmp_path: Path, tail: LongTail) -> None:
    head = LinearHead(8, CLASSES)
    test_source = source(tmp_path, "test", np.arange(CLASSES), 8, torch.device("cpu"))
    assert peak_bytes_on_cpu(lambda: scores(head, test_source, tail, batch_size=64)) < CLASSES**2  # one byte per entry


def test_scores_and_table_allocate_nothing_of_classes_times_classes(tmp_path: Path, tail: LongTail) -> None:
    head = LinearHead(8, CLASSES)
    test_source = source(tmp_path, "test", np.arange(CLASSES), 8, torch.device("cpu"))
    scores(head, test_source, tail)  # imports on first use are not measured
    tracemalloc.start()
    try:
        results = scores(head, test_source, tail)
        probe._table(results, dict.fromkeys(("trainable_parameters", "encode_seconds"), 0), "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < CLASSES**2  # one byte per entry


def test_an_allocation_of_classes_times_classes_is_detected() -> None:
    tracemalloc.start()
    try:
        np.zeros((CLASSES, CLASSES), np.int8)
        assert tracemalloc.get_traced_memory()[1] >= CLASSES**2
    finally:
        tracemalloc.stop()
    assert peak_bytes_on_cpu(lambda: torch.zeros(CLASSES, CLASSES, dtype=torch.int8)) >= CLASSES**2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "`classes` must be at least 2, got 1"),
        ({"images": 20}, "`images` must be at least 30, one for each class, got 20"),
        ({"test_images": 20}, "`test_images` must be at least 30, one for each class, got 20"),
        ({"batch": 0}, "`batch` must be at least 1, got 0"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"loss": "focall"}, "unknown loss 'focall'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    small = {"images": 90, "classes": 30, "width": 4, "test_images": 30, "batch": 8}
    with pytest.raises(InputError, match=message):
        bench_probe(**small | arguments)
