"""Benchmarks of loading and training: both loops do the same work, and the report has a line for each measurement."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.benchmarks.data import bench_data
from imbalance_vlm.benchmarks.train import _scaled_output, bench_train, generated_images
from imbalance_vlm.data.dataset import FileImages
from imbalance_vlm.tuning.peft.adaptformer import ParallelBottleneck


def test_both_loops_are_measured(tiny_clip: str) -> None:
    before = ParallelBottleneck.forward
    report = bench_train(8, 4, tiny_clip, 40, 30, repeats=1, device="cpu")
    assert ParallelBottleneck.forward is before
    assert "8 JPEG files of 40 x 30, batch 4" in report
    assert re.search(r"ours, fp32 +[\d.]+ +\d+\n", report)
    assert re.search(r"plain, fp32 +[\d.]+ +\d+\n", report)
    assert re.search(r"ours, fp32 over plain, fp32: [\d.]+x \(median of [\d.]+\)", report)


def test_loading_compute_and_both_are_measured(tiny_clip: str) -> None:
    report = bench_data(8, 4, tiny_clip, 40, 30, device="cpu")
    ways = ("pil", "torchvision", "pil, copies")
    for what in ("compute alone", *(f"{how}, {way}" for how in ("loading alone", "together") for way in ways)):
        assert re.search(rf"{what} +[\d.]+ images/s", report), what
    assert re.search(r"together is \d+ % of compute alone; the limit is (loading|compute)", report)


def test_the_plain_adapter_gives_the_same_output() -> None:
    module = ParallelBottleneck(8, 4)
    torch.nn.init.normal_(module.up.weight)
    torch.nn.init.normal_(module.scale)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(_scaled_output(module, x), module(x))


def test_generated_images_are_files_of_many_classes(tmp_path: Path) -> None:
    split = generated_images(tmp_path, 12, 40, 30)
    assert isinstance(split.images, FileImages)
    assert split.images[0].size == (40, 30)
    assert len(np.unique(split.labels)) > 3
    assert not np.array_equal(np.asarray(split.images[0]), np.asarray(split.images[1]))


def test_fewer_than_two_steps_or_no_repeats_are_refused() -> None:
    with pytest.raises(InputError, match="`batch` must be from 1 to half of `images`.*got 5 and 8"):
        bench_train(8, 5)
    with pytest.raises(InputError, match="`repeats` must be at least 1"):
        bench_train(8, 4, repeats=0)
