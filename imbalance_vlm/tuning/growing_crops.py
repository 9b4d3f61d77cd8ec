"""Growing crops: square crops that show more of the image from epoch to epoch (minimalist augmentation in [0]).

[0] Shi, Wei, Li. LIFT+: Lightweight Fine-Tuning for Long-Tail Learning. arXiv 2504.13282, 2025.
[1] github.com/shijxcs/LIFT-plus, utils/transforms.py

    Epoch e of E draws the share of the image that a crop shows from [a_t, 1], t = e / (E - 1):
    a_t = .08 + .92 (1 - sqrt(1 - t^2))

    Both ends of the interval are capped at the share of the largest square in the image; its position is random.

There is no other augmentation: no mirroring, no change of aspect ratio. a_t stays low for most of the training and
reaches 1 in the last epoch, which sees only the largest squares.

Differs from [1] in: a training of one epoch, where [1] divides by zero, uses t = 0.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from imbalance_vlm.components.ranges import Part
from imbalance_vlm.data.preprocessing import View


def smallest_share(epoch: int, epochs: int, start: float = 0.08) -> float:
    """a_t, the smallest share of an image that a crop of this epoch shows.

    >>> [round(smallest_share(epoch, 5), 3) for epoch in range(5)]
    [0.08, 0.109, 0.203, 0.391, 1.0]
    """
    t = epoch / max(epochs - 1, 1)
    return start + (1 - start) * (1 - math.sqrt(1 - t * t))


def random_square(width: int, height: int, smallest: float, generator: torch.Generator) -> tuple[int, int, int]:
    """(left, top, side) of a square whose share of the image is uniform between `smallest` and the largest possible."""
    largest = min(width, height) ** 2 / (width * height)
    smallest = min(smallest, largest)
    share, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    side = round(math.sqrt((smallest + share * (largest - smallest)) * width * height))
    side = min(max(side, 1), width, height)
    return int(right * (width - side + 1)), int(down * (height - side + 1)), side


@dataclass(frozen=True)
class SquareCrop:
    """A random square of the image, then the model's own transform, which scales it to the model's size.

    The crop depends on image, seed and epoch only, so that it is the same on every worker and in a resumed run.
    """

    base: View
    seed: int
    epoch: int
    min_scale: float

    @property
    def size(self) -> tuple[int, int]:
        return self.base.size

    def __call__(self, image: Image.Image, /) -> Tensor:
        seed = zlib.crc32(image.tobytes(), zlib.crc32(f"{self.seed} {self.epoch}".encode()))
        generator = torch.Generator().manual_seed(seed)
        left, top, side = random_square(*image.size, self.min_scale, generator)
        return self.base(image.crop((left, top, left + side, top + side)))

    def key(self) -> str:
        return f"square crop, seed {self.seed}, epoch {self.epoch}, scale {self.min_scale}, {self.base.key()}"


def growing_crops(base: View, epochs: int, seed: int, *, min_scale: Part = 0.08) -> list[View]:
    """The transforms of a training, one per epoch.

    Args:
        base: the model's own transform.
        epochs: number of epochs.
        seed: seed of the run.
        min_scale: smallest share of an image that a crop of the first epoch shows.
    """
    return [SquareCrop(base, seed, epoch, smallest_share(epoch, epochs, min_scale)) for epoch in range(epochs)]
