"""Growing crops: their schedule, shape, place and seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imbalance_vlm.tuning.growing_crops import SquareCrop, growing_crops, random_square, smallest_share


def make_image(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def to_tensor(cropped: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(cropped))


@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_the_smallest_share_follows_a_quarter_of_a_circle(epochs: int) -> None:
    for epoch in range(epochs):
        t = 0.0 if epochs == 1 else epoch / (epochs - 1)
        share = smallest_share(epoch, epochs)
        # (t, y) lies on the circle around (0, 1): t^2 + (1 - y)^2 = 1
        assert t**2 + (1 - (share - 0.08) / 0.92) ** 2 == pytest.approx(1)
        assert 0.08 <= share <= 1
    assert smallest_share(0, epochs) == pytest.approx(0.08)
    if epochs > 1:
        assert smallest_share(epochs - 1, epochs) == 1


def test_squares_lie_anywhere_and_are_as_large_as_allowed() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([random_square(40, 24, 0.2, generator) for _ in range(3000)])
    left, top, side = drawn.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + side <= 40).all()
    assert (top + side <= 24).all()
    assert side.min() == round(math.sqrt(0.2 * 40 * 24))
    assert side.max() == 24, "the largest square in the image"
    share = side**2 / (40 * 24)
    assert share.mean() == pytest.approx((0.2 + 0.6) / 2, abs=0.01), "uniform in area"
    assert {(left == 0).any(), (left + side == 40).any(), (top == 0).any(), (top + side == 24).any()} == {True}


def test_the_last_epoch_has_the_largest_squares() -> None:
    last = growing_crops(to_tensor, 3, seed=0)[-1]
    assert all(last(make_image(seed=number)).shape == (24, 24, 3) for number in range(20))


def test_crops_are_never_mirrored_or_stretched() -> None:
    image = to_tensor(make_image())
    for epoch in range(8):
        crop = SquareCrop(to_tensor, 0, epoch, 0.08)(make_image())
        side = crop.shape[0]
        assert crop.shape == (side, side, 3)
        assert any(
            torch.equal(image[top : top + side, left : left + side], crop)
            for top in range(25 - side)
            for left in range(41 - side)
        )


def test_a_crop_depends_on_image_seed_and_epoch_alone() -> None:
    def crop(seed: int, epoch: int, number: int = 0) -> bytes:
        return growing_crops(to_tensor, 5, seed)[epoch](make_image(seed=number)).numpy().tobytes()

    before = torch.get_rng_state()
    first = crop(0, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert crop(0, 1) == first
    assert len({first, crop(1, 1), crop(0, 0), crop(0, 2), crop(0, 1, number=3)}) == 5
