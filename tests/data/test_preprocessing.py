"""The preprocessing as a value: on images, on tensors, on batches, and its key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.data.decoders import to_tensor
from imbalance_vlm.data.preprocessing import OnTensors, PartialView, Preprocessing, with_tensors
from tests.data.images import preprocessing, smooth

MODEL = preprocessing()
ONE_STEP = 1.01 / 255 / min(MODEL.std)

VARIANTS: dict[str, dict[str, Any]] = {
    "size": {"size": (16, 17)},
    "mean": {"mean": (0.5, 0.4, 0.3000000001)},
    "std": {"std": (0.25, 0.2, 0.31)},
    "resize": {"resize": "squash"},
    "interpolation": {"interpolation": "bilinear"},
    "resized": {"resized": (18, 18)},
    "fill": {"fill": (0, 0, 1)},
}


@dataclass(frozen=True)
class LeftHalf(PartialView):
    def crop(self, image: Image.Image) -> Image.Image:
        return image.crop((0, 0, image.width // 2, image.height))


def test_variants_cover_every_field() -> None:
    assert set(VARIANTS) == set(Preprocessing.__dataclass_fields__)


@pytest.mark.parametrize("field", VARIANTS)
def test_every_field_is_in_the_key(field: str) -> None:
    changed = replace(MODEL, **VARIANTS[field])
    assert changed.key() != MODEL.key()
    assert LeftHalf(changed).key() != LeftHalf(MODEL).key()


def test_equal_values_have_equal_keys_whatever_their_types() -> None:
    integers = Preprocessing((16, 16), mean=(0, 0, 0), std=(1, 1, 1))
    same = Preprocessing([16, 16], np.zeros(3), np.ones(3, np.float32), resized=(16, 16))  # type: ignore[arg-type]
    assert same == integers
    assert same.key() == integers.key()


def test_views_of_one_preprocessing_have_different_keys() -> None:
    assert len({view.key() for view in (MODEL, LeftHalf(MODEL), OnTensors(MODEL), LeftHalf(OnTensors(MODEL)))}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5,)}, "`mean` must have 3 entries"),
        ({"size": (16,)}, "`size` must have 2 entries"),
        ({"size": (16, 0)}, "sides must be at least 1"),
        ({"std": (0.1, 0.0, 0.1)}, "`std` positive"),
        ({"resize": "stretch"}, "`resize` must be 'shortest', 'longest' or 'squash', got 'stretch'"),
        ({"interpolation": "cubic"}, "`interpolation` must be 'nearest', .*, got 'cubic'"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(MODEL, **change)


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("width", "height"), [(60, 40), (17, 90), (16, 16), (9, 12)])
def test_tensors_are_prepared_as_images_are(resize: Any, width: int, height: int) -> None:
    image, model = smooth(1, width, height), replace(MODEL, resize=resize, fill=(10, 20, 30))
    pixels = to_tensor(image)
    prepared = model.on_tensors(pixels)
    assert prepared.shape == model(image).shape == (3, 16, 16)
    assert float((prepared - model(image)).abs().max()) <= ONE_STEP
    torch.testing.assert_close(model.on_tensors(torch.stack([pixels, pixels]))[1], prepared)


@pytest.mark.parametrize(
    ("height", "width", "change", "unchanged"),
    [
        (16, 16, {}, True),
        (16, 16, {"resize": "squash"}, True),
        (16, 16, {"resize": "longest"}, True),
        (16, 20, {"size": (16, 20), "resize": "squash"}, True),
        (16, 20, {}, False),
        (20, 16, {"size": (16, 20), "resize": "squash"}, False),
        (16, 16, {"resized": (18, 18)}, False),
        (15, 15, {}, False),
    ],
)
def test_images_of_the_models_size_are_only_normalised(
    height: int, width: int, change: dict[str, Any], unchanged: bool
) -> None:
    model = replace(MODEL, **change)
    assert model.only_normalises(height, width) == unchanged
    if unchanged:
        images = [smooth(seed, width, height) for seed in range(3)]
        batch = model.normalise(torch.stack([to_tensor(image) for image in images]))
        assert torch.equal(batch, torch.stack([model(image) for image in images])), "to the last bit"


def test_an_extreme_shape_keeps_one_pixel() -> None:
    assert replace(MODEL, resize="longest")(smooth(0, 300, 2)).shape == (3, 16, 16)


def test_a_partial_view_prepares_its_crop() -> None:
    image = smooth(2, 60, 40)
    assert torch.equal(LeftHalf(MODEL)(image), MODEL(image.crop((0, 0, 30, 40))))
    assert LeftHalf(MODEL).size == MODEL.size


def test_views_use_tensors_where_their_preprocessing_can() -> None:
    image = smooth(3, 60, 40)
    assert with_tensors(MODEL) == OnTensors(MODEL)
    assert with_tensors(LeftHalf(MODEL)) == LeftHalf(OnTensors(MODEL))
    assert torch.equal(with_tensors(MODEL)(image), MODEL.on_tensors(to_tensor(image)))
    only_pil = replace(MODEL, interpolation="lanczos")
    assert with_tensors(only_pil) is only_pil
    assert with_tensors(LeftHalf(only_pil)) == LeftHalf(only_pil)
