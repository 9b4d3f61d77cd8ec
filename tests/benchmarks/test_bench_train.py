"""Benchmarks of loading and training: both loops do the same work, and the report has a line for each measurement."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.benchmarks.data import bench_data
from imbalance_vlm.benchmarks.released_way import ReleasedWay
from imbalance_vlm.benchmarks.train import bench_train, generated_images
from imbalance_vlm.data.dataset import FileImages
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer


def test_both_ways_are_measured(tiny_clip: str) -> None:
    report = bench_train(8, 4, tiny_clip, 40, 30, repeats=1, device="cpu")
    assert "8 JPEG files of 40 x 30, batch 4" in report
    assert re.search(r"ours, fp32 +[\d.]+ +[\d.]+ +\d+\n", report)
    assert re.search(r"released way, fp32 +[\d.]+ +[\d.]+ +\d+\n", report)
    assert re.search(r"ours, fp32 over released way, fp32: [\d.]+x images/s, [\d.]+x less CPU time", report)


def test_loading_compute_and_both_are_measured(tiny_clip: str) -> None:
    report = bench_data(8, 4, tiny_clip, 40, 30, device="cpu")
    ways = ("pil", "torchvision", "pil, copies")
    for what in ("compute alone", *(f"{how}, {way}" for how in ("loading alone", "together") for way in ways)):
        assert re.search(rf"{what} +[\d.]+ images/s", report), what
    assert re.search(r"together is \d+ % of compute alone; the limit is (loading|compute)", report)


def test_the_released_way_has_the_features_and_gradients_of_the_tuned_tower(tiny_clip: str) -> None:
    encoder = create_encoder(tiny_clip)
    encoder.module.double().requires_grad_(False)
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with AdaptFormer(width=4).apply(encoder.module, 10) as tuned:
        for parameter in tuned.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        ours = encoder.image_features(pixels, "class_token")
        theirs = ReleasedWay(tuned.root, tuned.added)(pixels)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs.float())
        gradients = [torch.autograd.grad(output.square().sum(), tuned.parameters()) for output in (ours, theirs)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_the_released_way_needs_a_tower_of_open_clip() -> None:
    with pytest.raises(
        InputError, match="vision transformer of open_clip's own, such as ViT-B-16, got one with a Linear"
    ):
        ReleasedWay(torch.nn.Linear(2, 2), [])


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
