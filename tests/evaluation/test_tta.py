"""Test-time ensembling: the crops are torchvision's, and the logits are averaged before the softmax."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.encoders.features import feature_source
from imbalance_vlm.encoders.sources import FeatureSource, ImageSource, PixelSource
from imbalance_vlm.evaluation.tta import AllViews, five_crops, mean_logits, views_of

MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)


def encoder_of(*steps: Any) -> Any:
    return SimpleNamespace(name="a model", transform=T.Compose(steps))


def standard(size: int = 28, interpolation: T.InterpolationMode = T.InterpolationMode.BICUBIC) -> Any:
    return encoder_of(T.Resize(size, interpolation), T.CenterCrop(size), T.ToTensor(), T.Normalize(MEAN, STD))


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("shape", [(50, 40), (33, 61), (31, 31), (20, 90)])
@pytest.mark.parametrize("mode", [T.InterpolationMode.BICUBIC, T.InterpolationMode.BILINEAR])
@pytest.mark.parametrize("flips", [False, True])
def test_views_are_those_of_torchvision(shape: tuple[int, int], mode: T.InterpolationMode, flips: bool) -> None:
    image = noise_image(*shape)
    scaled = TF.resize(image, 31, mode)  # 28 * 248 / 224
    crops = TF.ten_crop(scaled, 28) if flips else TF.five_crop(scaled, 28)
    wanted = [TF.normalize(TF.to_tensor(crop), MEAN, STD) for crop in crops]
    got = [view(image) for view in five_crops(standard(interpolation=mode), flips)]
    assert len(got) == len(wanted)
    for view in got:
        assert view.shape == (3, 28, 28)
        assert any(torch.allclose(view, crop, atol=1e-6) for crop in wanted)
    assert len({view.numpy().tobytes() for view in got}) == len(got)


def test_the_margin_is_24_at_224() -> None:
    first = five_crops(standard(224))[0]
    assert (first.size, first.scaled) == (224, 248)


def test_a_view_says_all_that_it_does_and_no_address() -> None:
    """The feature cache tells views apart by what they print."""
    said = {repr(view) for view in five_crops(standard(), flips=True)}
    assert len(said) == 10
    assert not any(" at 0x" in text for text in said)
    assert repr(five_crops(standard())[1]) == repr(five_crops(standard())[1])
    assert repr(five_crops(standard(interpolation=T.InterpolationMode.BILINEAR))[1]) not in said


def test_transforms_that_do_not_say_enough_are_refused() -> None:
    with pytest.raises(InputError, match="resizes and normalises, 'a model' has ToTensor"):
        five_crops(encoder_of(T.ToTensor()))
    with pytest.raises(InputError, match="square inputs, encoder 'a model' takes 20 x 30"):
        five_crops(encoder_of(T.Resize((20, 30)), T.Normalize(MEAN, STD)))


def test_logits_are_averaged_before_the_softmax() -> None:
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(7, 4)).astype(np.float32) for _ in range(5)]
    labels = np.arange(7) % 3
    head = nn.Linear(4, 3)
    source = FeatureSource(views, labels, torch.device("cpu"))
    with torch.no_grad():
        batches = list(mean_logits(head, source, torch.arange(7).split(3)))
    got = torch.cat([logits for logits, _ in batches]).numpy()
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    for row in range(7):
        wanted = sum(weight @ view[row] + bias for view in views) / 5
        np.testing.assert_allclose(got[row], wanted, rtol=1e-5, atol=1e-6)
    assert torch.cat([found for _, found in batches]).tolist() == labels.tolist()
    assert not np.allclose(got, views[0] @ weight.T + bias, atol=1e-2)


def test_crops_go_through_the_cache_like_any_view(tiny_clip: str, images: Any) -> None:
    from imbalance_vlm.data.folder import FolderReader

    encoder = create_encoder(tiny_clip)
    split = FolderReader(root=images).read().splits["test"]
    crops = five_crops(encoder)
    source = feature_source(encoder, split, "embedding", crops, torch.device("cpu"), "test")
    assert source.num_views == 5
    ((features, _),) = source.batches([torch.arange(2)], epoch=3)
    with torch.no_grad():
        wanted = encoder.image_features(torch.stack([crops[3](split.images[number]) for number in (0, 1)]), "embedding")
    torch.testing.assert_close(features, wanted)


# -- what an evaluation asks for ---------------------------------------------------------------------------------------


def test_none_is_the_model_s_own_view() -> None:
    model = standard()
    assert views_of(model, "none", flips=False) == [model.transform]
    assert len(views_of(model, "five_crops", flips=False)) == 5
    assert len(views_of(model, "five_crops", flips=True)) == 5
    assert len(views_of(model, "five_crops_flips", flips=True)) == 10


def test_mirror_images_are_refused_where_classes_do_not_survive_them() -> None:
    with pytest.raises(InputError, match=r"`evaluation\.tta` must be 'none' or 'five_crops' .*got 'five_crops_flips'"):
        views_of(standard(), "five_crops_flips", flips=False)


class Watched(nn.Module):
    """Logits of images or features, and how many it was given at once."""

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
    from imbalance_vlm.data.folder import FolderReader

    encoder, split = create_encoder(tiny_clip), FolderReader(root=images).read().splits["test"]
    crops = five_crops(encoder, flips)
    head = Watched(3 * 16 * 16)
    rows = torch.randperm(20).split(12)
    with torch.no_grad():
        batches = list(mean_logits(head, PixelSource(split, crops, torch.device("cpu")), rows))
        assert max(head.sizes) <= max(1, 12 // len(crops)), "no more images at once than without the views"
        got = torch.cat([logits for logits, _ in batches])
        order = torch.cat(rows).tolist()
        for place, row in enumerate(order):
            wanted = sum(head(crop(split.images[row])[None])[0] for crop in crops) / len(crops)
            torch.testing.assert_close(got[place], wanted)
    assert torch.cat([labels for _, labels in batches]).tolist() == [int(split.labels[row]) for row in order]


def test_features_that_are_not_cached_are_those_that_are(tiny_clip: str, images: Any) -> None:
    from imbalance_vlm.data.folder import FolderReader

    encoder, split = create_encoder(tiny_clip), FolderReader(root=images).read().splits["test"]
    crops, cpu, rows = five_crops(encoder), torch.device("cpu"), torch.arange(20).split(8)
    cached = feature_source(encoder, split, "embedding", crops, cpu, "test")
    assert isinstance(cached, FeatureSource)
    head = Watched(16)
    with torch.no_grad():
        wanted = torch.cat([logits for logits, _ in mean_logits(head, cached, rows)])
        live = ImageSource(split, encoder, "embedding", crops, cpu)
        found = torch.cat([logits for logits, _ in mean_logits(head, live, rows)])
        torch.testing.assert_close(found, wanted)
        own = ImageSource(split, encoder, "embedding", [encoder.transform], cpu)
        ((single, labels),) = mean_logits(head, own, [torch.arange(4)])
        ((features, _),) = own.batches([torch.arange(4)])
        assert torch.equal(single, head(features)), "of one view it is that view's"
        assert labels.tolist() == split.labels[:4].tolist()


def test_an_image_is_read_and_resized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image, views = noise_image(50, 40), five_crops(standard(), flips=True)
    wanted = torch.stack([view(image) for view in views])
    resized, real = [], Image.Image.resize

    def counted(self: Image.Image, *how: Any, **more: Any) -> Image.Image:
        resized.append(how)
        return real(self, *how, **more)

    monkeypatch.setattr(Image.Image, "resize", counted)
    assert torch.equal(AllViews(tuple(views))(image), wanted)
    assert len(resized) == 1
    own = AllViews((standard().transform, views[0]))(image)  # any view can stand beside them
    assert own.shape == (2, 3, 28, 28)
