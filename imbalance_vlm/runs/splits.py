"""The splits of a run's dataset as its head reads them, and the directions that heads start from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from imbalance_vlm.balancing.prototypes import assign_prototypes, resolve_kind
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.features import feature_source, view_transforms
from imbalance_vlm.encoders.sources import PixelSource, Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.base import ViewName
from imbalance_vlm.evaluation.tta import views_of
from imbalance_vlm.heads.factory import class_mean_directions, text_directions
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.tuning.base import Tuning, TuningContext

RANDOM_CROPS = 2
RANDOM_CROP_SCALE = 0.5
"""Number and smallest scale of the random crops of an image, for methods that compare two views of it."""


class SplitFeatures:
    """What the head of a run reads of each split: features of the frozen tower, or images for a tower that is trained.

    Args:
        data: the dataset.
        context: what the tuning builds on.
        tuning: determines what is read and how training images are augmented.
        resources: shared by the runs of a study.
        encoder_section: the recipe's `encoder` section.
        tta: test-time augmentation.
        tta_margin: of its crops; see `imbalance_vlm.evaluation.tta.views_of`.

    Attributes:
        seconds: time spent on encoding.
    """

    def __init__(
        self,
        data: Dataset,
        context: TuningContext,
        tuning: Tuning,
        resources: Resources,
        encoder_section: Mapping[str, Any],
        tta: Any = "none",
        tta_margin: int | None = None,
    ) -> None:
        self.data = data
        self.context = context
        self.encoder = context.encoder
        self.kind = context.kind
        self.device = context.device
        self.tuning = tuning
        self.resources = resources
        self.caching = {key: encoder_section[key] for key in settings_of(feature_source)}
        self.seconds = 0.0
        plain = [self.encoder.preprocessing]
        self._views = {
            "plain": plain,
            "train": tuning.transforms(context),
            "tta": views_of(self.encoder.preprocessing, tta, data.flips, tta_margin),
            "random": view_transforms(self.encoder, RANDOM_CROPS, RANDOM_CROP_SCALE, data.flips),
        }
        self._sources: dict[tuple[str, tuple[str, ...]], Source] = {}
        self._directions: dict[str, Tensor | None] = {}

    def of(self, split: str, view: ViewName = "plain") -> Source:
        """What the head reads of a split; see `imbalance_vlm.evaluation.base.SplitFeatures.of`."""
        if not self.tuning.reads_pixels:
            return self.encoded(split, view)
        images = resized_split(self.data.splits[split], self.caching["resized"])
        return PixelSource(images, self._transforms(split, view), self.device, self.caching["decoder"])

    def encoded(self, split: str, view: ViewName = "plain") -> Source:
        """The features of a split, from the frozen tower."""
        if self.tuning.reads_pixels:
            view = "plain"  # the crops of a tower that is trained are new in every epoch
        transforms = self._transforms(split, view)
        key = split, tuple(transform.key() for transform in transforms)
        if key not in self._sources:
            start = time.monotonic()
            self._sources[key] = feature_source(
                self.encoder,
                self.data.splits[split],
                self.kind,
                transforms,
                self.device,
                f"{self.data.name} {split}",
                **self.caching,
            )
            self.seconds += time.monotonic() - start
        return self._sources[key]

    def _transforms(self, split: str, view: ViewName) -> Any:
        return self._views["train" if (split, view) == ("train", "random") else view]

    def directions(self, init: str) -> Tensor | None:
        """(C, w) unit rows that a head can start from; None for "random"."""
        if init not in self._directions:
            with self.tuning.base():
                self._directions[init] = self._make_directions(init)
        return self._directions[init]

    def _make_directions(self, init: str) -> Tensor | None:
        if init == "text":
            kind = "class_token" if self.kind == "tokens" else self.kind
            names, templates = self.data.class_names, self.data.templates
            return text_directions(self.encoder, kind, names, self.context.text_features(names, templates))
        if init == "class_mean":
            return class_mean_directions(self.encoded("train", "random"), self.data.num_classes)
        return None

    def prototypes(self, section: Mapping[str, Any], width: int | None = None) -> Tensor:
        """(C, d) uniform prototypes, each assigned to a class as the section of a head or regularizer says.

        The section may have the settings `kind`, `prototype_seed` and `assign`; by default prototypes are of the kind
        "auto", with seed 0, in arbitrary order.

        Args:
            section: section of the component that uses them.
            width: d; None for the width of the features.

        Raises:
            InputError: prototypes of another width than the features', to be assigned by features.
        """
        feature_width = self.encoder.width(self.kind)
        width = width or feature_width
        check_assignable(section, width, feature_width)
        kind, seed = section.get("kind", "auto"), section.get("prototype_seed", 0)
        rows = self.resources.prototypes(self.data.num_classes, width, kind, seed)
        directions = self.directions(section.get("assign", "none"))
        return rows.clone() if directions is None else rows[assign_prototypes(rows, directions)].to(directions.device)


def check_assignable(section: Mapping[str, Any], width: int, feature_width: int) -> None:
    """Refuse to assign prototypes to classes by features of another width.

    Raises:
        InputError: they would be; the message holds both widths.
    """
    assign = section.get("assign", "none")
    if assign != "none" and width != feature_width:
        raise InputError(
            f"`assign` of '{section['name']}' must be 'none' where the head's embeddings have another width than the "
            f"features, {width} and {feature_width}, got '{assign}'"
        )


class Starts(Protocol):
    """Where heads and prototypes start."""

    def directions(self, init: str) -> Tensor | None: ...
    def prototypes(self, section: Mapping[str, Any], width: int | None = None) -> Tensor: ...


class BlankStarts:
    """Starts of the right shape without content, for a model whose weights are loaded, or that is only checked.

    Args:
        num_classes: C.
        width: w of the features.
        check_text: checks the class names before they are a start; None where they were trained on.
    """

    def __init__(self, num_classes: int, width: int, check_text: Callable[[], None] | None = None) -> None:
        self.shape = num_classes, width
        self.check_text = check_text

    def directions(self, init: str) -> Tensor | None:
        if init == "text" and self.check_text:
            self.check_text()
        return None if init == "random" else torch.zeros(self.shape)

    def prototypes(self, section: Mapping[str, Any], width: int | None = None) -> Tensor:
        num_classes, feature_width = self.shape
        width = width or feature_width
        check_assignable(section, width, feature_width)
        self.directions(section.get("assign", "none"))
        resolve_kind(section.get("kind", "auto"), num_classes, width)
        return torch.zeros(num_classes, width)
