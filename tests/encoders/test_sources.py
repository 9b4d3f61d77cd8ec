"""Batches of cached features and of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import ArrayImages, FileImages, Split
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders import sources
from imbalance_vlm.encoders.sources import FeatureSource, PixelSource, evaluation_rows
from imbalance_vlm.training.loop import steps_per_epoch

VIEWS = [np.arange(12, dtype=np.float16).reshape(6, 2) + 100 * view for view in range(2)]
LABELS = np.arange(6)
CPU = torch.device("cpu")
MODEL = Preprocessing((4, 4), mean=(0, 0, 0), std=(1, 1, 1))


def source() -> FeatureSource:
    return FeatureSource(VIEWS, LABELS, CPU)


def test_batches_are_the_rows_asked_for_in_float32() -> None:
    ((features, labels),) = source().batches([torch.tensor([4, 1])])
    assert features.dtype == torch.float32
    assert features.tolist() == VIEWS[0][[4, 1]].tolist()
    assert labels.tolist() == [4, 1]


def test_each_epoch_reads_the_next_view() -> None:
    row = [torch.tensor([0])]
    first = [next(iter(source().batches(row, epoch)))[0][0, 0].item() for epoch in range(4)]
    assert first == [0, 100, 0, 100]


def test_a_set_smaller_than_a_batch_gives_one_batch() -> None:
    rows = torch.arange(6).split(512)
    assert [len(labels) for _, labels in source().batches(rows)] == [6]
    assert steps_per_epoch(source(), 512) == 1


def test_a_set_that_does_not_fit_is_read_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = [batch.tolist() for pair in source().batches([torch.tensor([5, 0])], 1) for batch in pair]
    monkeypatch.setattr(sources, "free_memory", lambda device: 0)
    mapped = source()
    assert not isinstance(mapped.views[0], torch.Tensor)
    assert [batch.tolist() for pair in mapped.batches([torch.tensor([5, 0])], 1) for batch in pair] == in_memory


def test_rows_have_names_for_errors() -> None:
    assert source().name(3) == "row 3"
    named = FeatureSource(VIEWS, LABELS, CPU, "cats/{}.png".format)
    assert named.name(3) == "cats/3.png"
    split = Split(ArrayImages(np.zeros((2, 4, 4, 3), np.uint8), "drawing "), [0, 1])
    assert PixelSource(split, [MODEL], CPU).name(1) == "drawing 1"


def test_images_of_each_epoch_are_the_next_view() -> None:
    split = Split(ArrayImages(np.zeros((3, 4, 4, 3), np.uint8)), [0, 1, 2])
    views = [replace(MODEL, mean=(-view,) * 3) for view in range(2)]  # black becomes 0 and 1
    pixels = PixelSource(split, views, CPU)
    rows = [torch.tensor([2, 0]), torch.tensor([1])]
    for epoch in range(3):
        batches = list(pixels.batches(rows, epoch))
        assert [labels.tolist() for _, labels in batches] == [[2, 0], [1]]
        assert {float(batch.unique()) for batch, _ in batches} == {epoch % 2}


def test_an_evaluation_reads_no_image_to_learn_its_size(tmp_path: Path) -> None:
    split = Split(FileImages(tmp_path, ("no such file.png",) * 60), np.zeros(60, np.int64))
    source = PixelSource(split, [replace(MODEL, size=(224, 224))], CPU)
    assert [len(rows) for rows in evaluation_rows(source, 1024)] == [27, 27, 6]  # 2^22 numbers
    assert [len(rows) for rows in evaluation_rows(source, 10)] == [10] * 6


def test_only_large_features_make_smaller_batches() -> None:
    def features(*shape: int) -> FeatureSource:
        return FeatureSource([np.zeros((1100, *shape), np.float16)], np.zeros(1100, np.int64), CPU)

    assert len(evaluation_rows(features(17, 192), 1024)[0]) == 1024
    assert len(evaluation_rows(features(100, 768), 1024)[0]) == 2**22 // 76_800
    assert len(evaluation_rows(features(768), 1024)[0]) == 1024


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(9000, 3), (9000, 2, 3)])
def test_features_that_are_not_finite_are_refused_with_the_names_of_their_images(
    value: float, shape: tuple[int, ...]
) -> None:
    view = np.zeros(shape, np.float16)
    view[[4095, 4096, *range(8000, 8010)], ..., -1] = value
    with pytest.raises(InputError, match="for 12 of 9000 images: '4095', '4096', '8000', '8001', '8002', ...; "):
        FeatureSource([np.zeros(shape), view], np.zeros(9000, np.int64), CPU, str)
