"""Benchmarks of loading and training: both ways do the same work, and the report holds what was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.benchmarks.data import bench_data
from imbalance_vlm.benchmarks.train import bench_train, generated_images, peak_mb
from imbalance_vlm.data.dataset import FileImages
from imbalance_vlm.tuning.peft.adaptformer import ParallelBottleneck


def test_both_ways_are_measured_side_by_side(tiny_clip: str) -> None:
    before = ParallelBottleneck.forward
    said = bench_train(8, 4, tiny_clip, 40, 30, repeats=1, device="cpu")
    assert ParallelBottleneck.forward is before
    assert "8 JPEG files of 40 x 30, batch 4" in said
    assert re.search(r"ours, fp32 +[\d.]+ +\d+\n", said)
    assert re.search(r"plain, fp32 +[\d.]+ +\d+\n", said)
    assert re.search(r"ours, fp32 over plain, fp32: [\d.]+x \(median of [\d.]+\)", said)


def test_loading_compute_and_both_are_measured(tiny_clip: str) -> None:
    said = bench_data(8, 4, tiny_clip, 40, 30, device="cpu")
    ways = ("pil", "torchvision", "pil, copies")
    for what in ("compute alone", *(f"{how}, {way}" for how in ("loading alone", "together") for way in ways)):
        assert re.search(rf"{what} +[\d.]+ images/s", said), what
    assert re.search(r"together is \d+ % of compute alone; the limit is (loading|compute)", said)


def test_the_plain_adapter_computes_the_same() -> None:
    from imbalance_vlm.benchmarks import train

    module = ParallelBottleneck(8, 4)
    torch.nn.init.normal_(module.up.weight)
    torch.nn.init.normal_(module.scale)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(train._scaled_output(module, x), module(x))


def test_generated_images_are_files_of_many_classes(tmp_path: Path) -> None:
    split = generated_images(tmp_path, 12, 40, 30)
    assert isinstance(split.images, FileImages)
    assert split.images[0].size == (40, 30)
    assert len(np.unique(split.labels)) > 3
    assert not np.array_equal(np.asarray(split.images[0]), np.asarray(split.images[1]))


def test_the_peak_is_that_of_the_moment() -> None:
    def step() -> None:
        for _ in range(3):
            torch.zeros(250_000)  # 1 MB, given back at once

    assert peak_mb(step, torch.device("cpu")) == pytest.approx(1, rel=0.05)


def test_numbers_that_measure_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="`batch` must be from 1 to half of `images`.*got 5 and 8"):
        bench_train(8, 5)
    with pytest.raises(InputError, match="`repeats` must be at least 1"):
        bench_train(8, 4, repeats=0)
