"""What the runs of a study share: datasets, encoders, prototypes and text features, each made once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import create_dataset, dataset_identity, summary
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import encoder_spec
from imbalance_vlm.encoders.features import feature_source
from imbalance_vlm.heads.prototype import PrototypeKind
from imbalance_vlm.launcher import rank
from imbalance_vlm.progress import note
from imbalance_vlm.training.devices import fast_layout

T = TypeVar("T")
Section = Mapping[str, Any]


class Recent(OrderedDict[str, Any]):
    """The most recently used values, by key.

    Args:
        size: largest number of values.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get_or_make(self, key: str, make: Callable[[], T]) -> T:
        """The value of a key, which `make` makes if it is not kept."""
        if key not in self:
            self[key] = make()
        self.move_to_end(key)
        while len(self) > self.size:
            self.popitem(last=False)
        value: T = self[key]
        return value


class Resources:
    """Datasets, encoders, prototypes and text features, each found by the settings that it is made from.

    Files that change during the lifetime of this object are not read again: use it for one call of `run`, or in a
    program whose data and weights do not change.

    Args:
        announce: whether to print a note on the images and other files of each dataset that is read.
    """

    def __init__(self, announce: bool = False) -> None:
        self._announce = announce and rank() == 0
        self._datasets = Recent(16)  # base and novel halves come in pairs, and others are tested by transfer
        self._encoders = Recent(2)
        self._prototypes = Recent(2)
        self._texts = Recent(16)
        self._identities = Recent(100_000)

    def dataset(self, section: Section) -> Dataset:
        """The dataset of a recipe's `data` section, as the run draws it."""

        def read() -> Dataset:
            dataset = create_dataset(**section)
            if self._announce:
                note("; ".join([summary(dataset), *dataset.notes]))
            return dataset

        return self._datasets.get_or_make(_key(section), read)

    def dataset_identity(self, section: Section) -> str:
        """Identifies the data of a `data` section, without opening an image."""
        return self._identities.get_or_make(f"data {_key(section)}", lambda: dataset_identity(section))

    def encoder(self, section: Section, device: torch.device) -> Encoder:
        """The encoder of a recipe's `encoder` section, frozen, on its device."""

        settings = encoder_settings(section)

        def build() -> Encoder:
            encoder = encoder_spec(settings).build()
            fast_layout(encoder.module.requires_grad_(False), device)
            return encoder

        return self._encoders.get_or_make(f"{_key(settings)} {device}", build)

    def encoder_identity(self, section: Section) -> str:
        """Identifies the encoder of an `encoder` section, weights included, without loading it."""
        settings = encoder_settings(section)
        return self._identities.get_or_make(f"encoder {_key(settings)}", lambda: encoder_spec(settings).identity())

    def forget_encoders(self) -> None:
        """Release the encoders; each is loaded again when it is next needed."""
        self._encoders.clear()

    def prototypes(self, num_classes: int, dim: int, kind: PrototypeKind, seed: int) -> Tensor:
        """(C, d) uniform prototypes in arbitrary order; do not change them in place."""
        key = f"{num_classes} {dim} {kind} {seed}"
        return self._prototypes.get_or_make(key, lambda: create_prototypes(num_classes, dim, kind=kind, seed=seed))

    def text_features(self, encoder: Encoder, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, d) unit text features of the untouched text tower; do not change them in place."""
        device = str(next(encoder.module.parameters()).device)
        key = json.dumps([encoder.fingerprint, encoder.precision, device, list(class_names), list(templates)])
        return self._texts.get_or_make(key, lambda: encoder.text_features(class_names, templates))


def encoder_settings(section: Section) -> dict[str, Any]:
    """An `encoder` section without the settings that say how its features are kept."""
    shared = settings_of(feature_source)
    return {key: value for key, value in section.items() if key not in shared}


def _key(section: Section) -> str:
    return json.dumps(section, sort_keys=True, default=str)
