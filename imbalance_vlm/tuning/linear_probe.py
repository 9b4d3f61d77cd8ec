"""The head is trained on frozen features."""

from __future__ import annotations

from imbalance_vlm.components.ranges import Natural, Part
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.features import view_transforms
from imbalance_vlm.tuning.base import Task, Tuning


class LinearProbe(Tuning):
    """Trains the head alone; the towers stay as they are, so their features are computed once.

    Args:
        views: 0 trains on the model's own view of each image; k > 0 on k random crops of it (mirrored too, where the
            dataset's classes survive that), epoch e on crop e mod k. Each view is encoded once.
        min_scale: smallest share of the image that a crop shows, above 0 and at most 1.
    """

    def __init__(self, *, views: Natural = 0, min_scale: Part = 0.5) -> None:
        self.views = views
        self.min_scale = min_scale

    def transforms(self, task: Task) -> list[View]:
        return view_transforms(task.encoder, self.views, self.min_scale, task.flips)
