"""Test-time ensembling: the crops are torchvision's, and the logits are averaged before the softmax."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.data.folder import FolderReader
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.features import feature_source
from imbalance_vlm.encoders.sources import FeatureSource, ImageSource, PixelSource
from imbalance_vlm.evaluation.tta import AllViews, PlacedCrop, five_crops, mean_logits, views_of

MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)
MODEL = Preprocessing((28, 28), MEAN, STD)
CPU = torch.device("cpu")


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("shape", [(50, 40), (33, 61), (31, 31), (20, 90)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("flips", [False, True])
def test_crops_are_those_of_torchvision(
    shape: tuple[int, int], interpolation: Literal["bicubic", "bilinear"], flips: bool
) -> None:
    image = noise_image(*shape)
    scaled = TF.resize(image, 31, InterpolationMode(interpolation))  # 28 * 248 / 224
    expected = [
        TF.normalize(TF.to_tensor(crop), MEAN, STD)
        for crop in (TF.ten_crop(scaled, 28) if flips else TF.five_crop(scaled, 28))
    ]
    crops = [view(image) for view in five_crops(replace(MODEL, interpolation=interpolation), flips)]
    assert len(crops) == len(expected)
    for crop in crops:
        assert crop.shape == (3, 28, 28)
        assert any(torch.allclose(crop, other, atol=1e-6) for other in expected)
    assert len({crop.numpy().tobytes() for crop in crops}) == len(crops)


def test_the_margin_is_24_at_224() -> None:
    first = five_crops(replace(MODEL, size=(224, 224)))[0]
    assert isinstance(first, PlacedCrop)
    assert (first.size, first.shorter_side) == ((224, 224), 248)


def test_every_crop_has_a_key_of_its_own() -> None:
    keys = {view.key() for view in five_crops(MODEL, flips=True)}
    assert len(keys) == 10
    assert five_crops(MODEL)[1].key() in keys
    assert five_crops(replace(MODEL, interpolation="bilinear"))[1].key() not in keys


def test_inputs_that_are_not_square_are_refused() -> None:
    with pytest.raises(InputError, match="`evaluation.tta` must be 'none' .* not square, got 20 x 30"):
        five_crops(replace(MODEL, size=(20, 30)))


def test_logits_are_averaged_before_the_softmax() -> None:
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(7, 4)).astype(np.float32) for _ in range(5)]
    labels = np.arange(7) % 3
    head = nn.Linear(4, 3)
    source = FeatureSource(views, labels, CPU)
    with torch.no_grad():
        batches = list(mean_logits(head, source, torch.arange(7).split(3)))
    logits = torch.cat([logits for logits, _ in batches]).numpy()
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    for row in range(7):
        mean = sum(weight @ view[row] + bias for view in views) / 5
        np.testing.assert_allclose(logits[row], mean, rtol=1e-5, atol=1e-6)
    assert torch.cat([batch for _, batch in batches]).tolist() == labels.tolist()
    assert not np.allclose(logits, views[0] @ weight.T + bias, atol=1e-2)


def test_crops_go_through_the_cache_like_any_view(tiny_clip: str, images: Any) -> None:
    encoder = create_encoder(tiny_clip)
    split = FolderReader(root=images).read().splits["test"]
    crops = five_crops(encoder.preprocessing)
    source = feature_source(encoder, split, "embedding", crops, CPU, "test")
    assert source.num_views == 5
    ((features, _),) = source.batches([torch.arange(2)], epoch=3)
    with torch.no_grad():
        expected = encoder.image_features(
            torch.stack([crops[3](split.images[number]) for number in (0, 1)]), "embedding"
        )
    torch.testing.assert_close(features, expected)


# -- views of an evaluation --------------------------------------------------------------------------------------------


def test_none_is_the_models_own_view() -> None:
    assert views_of(MODEL, "none", flips=False) == [MODEL]
    assert len(views_of(MODEL, "five_crops", flips=False)) == 5
    assert len(views_of(MODEL, "five_crops", flips=True)) == 5
    assert len(views_of(MODEL, "five_crops_flips", flips=True)) == 10


def test_mirrored_crops_are_refused_where_classes_do_not_survive_mirroring() -> None:
    with pytest.raises(InputError, match=r"`evaluation\.tta` must be 'none' or 'five_crops' .*got 'five_crops_flips'"):
        views_of(MODEL, "five_crops_flips", flips=False)


class RecordsSizes(nn.Module):
    """Logits of images or features; records the batch sizes."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.layer = nn.Linear(numbers, 3)
        self.sizes: list[int] = []

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(features))
        logits: torch.Tensor = self.layer(features.flatten(1))
        return logits


@pytest.mark.parametrize("flips", [False, True])
def test_a_head_that_reads_images_sees_every_view_of_each(tiny_clip: str, images: Any, flips: bool) -> None:
    encoder, split = create_encoder(tiny_clip), FolderReader(root=images).read().splits["test"]
    crops = five_crops(encoder.preprocessing, flips)
    head = RecordsSizes(3 * 16 * 16)
    rows = torch.randperm(20).split(12)
    with torch.no_grad():
        batches = list(mean_logits(head, PixelSource(split, crops, CPU), rows))
        assert max(head.sizes) <= max(1, 12 // len(crops)), "no more images at once than without the views"
        logits = torch.cat([logits for logits, _ in batches])
        order = torch.cat(rows).tolist()
        for place, row in enumerate(order):
            mean = sum(head(crop(split.images[row])[None])[0] for crop in crops) / len(crops)
            torch.testing.assert_close(logits[place], mean)
    assert torch.cat([labels for _, labels in batches]).tolist() == [int(split.labels[row]) for row in order]


def test_logits_do_not_depend_on_the_cache(tiny_clip: str, images: Any) -> None:
    encoder, split = create_encoder(tiny_clip), FolderReader(root=images).read().splits["test"]
    crops, rows = five_crops(encoder.preprocessing), torch.arange(20).split(8)
    cached = feature_source(encoder, split, "embedding", crops, CPU, "test")
    assert isinstance(cached, FeatureSource)
    head = RecordsSizes(16)
    with torch.no_grad():
        from_cache = torch.cat([logits for logits, _ in mean_logits(head, cached, rows)])
        uncached = ImageSource(split, encoder, "embedding", crops, CPU)
        torch.testing.assert_close(torch.cat([logits for logits, _ in mean_logits(head, uncached, rows)]), from_cache)
        single = ImageSource(split, encoder, "embedding", [encoder.preprocessing], CPU)
        ((logits, labels),) = mean_logits(head, single, [torch.arange(4)])
        ((features, _),) = single.batches([torch.arange(4)])
        assert torch.equal(logits, head(features)), "with one view, its own logits"
        assert labels.tolist() == split.labels[:4].tolist()


def test_an_image_is_scaled_once_for_all_its_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    image, views = noise_image(50, 40), five_crops(MODEL, flips=True)
    expected = torch.stack([view(image) for view in views])
    calls, resize = [], Image.Image.resize

    def counted(self: Image.Image, *arguments: Any, **keywords: Any) -> Image.Image:
        calls.append(arguments)
        return resize(self, *arguments, **keywords)

    monkeypatch.setattr(Image.Image, "resize", counted)
    assert torch.equal(AllViews(tuple(views))(image), expected)
    assert len(calls) == 1


def test_crops_may_be_mixed_with_other_views() -> None:
    assert AllViews((MODEL, five_crops(MODEL)[0]))(noise_image(50, 40)).shape == (2, 3, 28, 28)
