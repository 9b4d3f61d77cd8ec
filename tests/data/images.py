"""Images and a preprocessing that tests of several modules share."""

from __future__ import annotations

import numpy as np
from PIL import Image

from imbalance_vlm.data.preprocessing import Preprocessing


def smooth(seed: int, width: int, height: int) -> Image.Image:
    """An image without hard edges, on which two ways of scaling differ little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def preprocessing(size: int = 16) -> Preprocessing:
    return Preprocessing((size, size), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
