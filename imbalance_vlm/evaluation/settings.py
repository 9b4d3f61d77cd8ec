"""The settings of a recipe's `evaluation` section, other than its evaluators and the thresholds of its groups."""

from __future__ import annotations

from dataclasses import dataclass

from imbalance_vlm.components.ranges import Count, Natural
from imbalance_vlm.components.settings import SettingGroup
from imbalance_vlm.evaluation.tta import Tta


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(SettingGroup):
    """How the test images are read.

    Args:
        tta: test-time augmentation: the logits are averaged over "five_crops" of each test image, or over these and
            their mirror images ("five_crops_flips"), instead of its one view; see `imbalance_vlm.evaluation.tta`.
        tta_margin: pixels by which the shorter side of an image exceeds its crops; null for 24 at inputs of 224 pixels,
            and in proportion for others.
        batch_size: largest number of images per batch; batches of large images and of tokens are smaller, to save
            memory.
    """

    tta: Tta = "none"
    tta_margin: Natural | None = None
    batch_size: Count = 1024
