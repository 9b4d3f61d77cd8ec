"""Datasets, encoders, prototypes and text features are made once for all runs that share them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import imbalance_vlm
from imbalance_vlm.data.folder import FolderReader
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs.resources import Recent, Resources

CPU = torch.device("cpu")
Recipe = dict[str, Any]


@pytest.fixture
def encoder_section(recipe: Recipe) -> Recipe:
    section: Recipe = plan(recipe).recipes[0]["encoder"]
    return section


def test_the_values_used_last_are_kept() -> None:
    recent, computed = Recent(2), []

    def get(key: str) -> str:
        return recent.get_or_make(key, lambda: computed.append(key) or key)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert get(key) == key
    assert computed == ["a", "b", "c", "b"], "c takes the place of b, which was used before a"
    assert list(recent) == ["a", "b"]


def test_a_failed_value_is_not_kept() -> None:
    recent = Recent(2)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            recent.get_or_make("a", lambda: 1 // 0)
    assert not recent


def test_datasets_are_shared_by_their_whole_section(recipe: Recipe) -> None:
    resources = Resources()
    section = plan(recipe).recipes[0]["data"]
    data = resources.dataset(section)
    assert resources.dataset(dict(reversed(section.items()))) is data
    assert resources.dataset(section | {"classes": "base"}) is not data


def test_encoders_are_frozen_and_shared_whatever_is_cached(encoder_section: Recipe) -> None:
    resources = Resources()
    encoder = resources.encoder(encoder_section, CPU)
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    assert resources.encoder(encoder_section | {"cache": False, "resized": 8}, CPU) is encoder
    assert resources.encoder(encoder_section | {"precision": "bf16"}, CPU) is not encoder


def test_forgotten_encoders_are_loaded_again(encoder_section: Recipe) -> None:
    resources = Resources()
    encoder = resources.encoder(encoder_section, CPU)
    resources.forget_encoders()
    again = resources.encoder(encoder_section, CPU)
    assert again is not encoder
    assert again.fingerprint == encoder.fingerprint


def test_prototypes_are_shared_by_shape_kind_and_seed() -> None:
    resources = Resources()
    rows = resources.prototypes(4, 8, "auto", 0)
    assert resources.prototypes(4, 8, "auto", 0) is rows
    assert not torch.equal(resources.prototypes(4, 8, "auto", 1), rows)


def test_text_features_are_computed_once(encoder_section: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = Resources()
    encoder = resources.encoder(encoder_section, CPU)
    computed: list[int] = []
    text_features = type(encoder).text_features

    def counted(self: Encoder, names: Any, templates: Any) -> Any:
        computed.append(len(names))
        return text_features(self, names, templates)

    monkeypatch.setattr(type(encoder), "text_features", counted)
    names, templates = ["apple", "leaf"], ["a photo of a {}."]
    rows = resources.text_features(encoder, names, templates)
    assert resources.text_features(encoder, tuple(names), tuple(templates)) is rows
    assert resources.text_features(encoder, names, ["a {}."]) is not rows
    assert computed == [2, 2]


def test_a_study_lists_its_files_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    identity = FolderReader.identity

    def counted(self: FolderReader) -> str:
        listed.append(str(self.root))
        return identity(self)

    monkeypatch.setattr(FolderReader, "identity", counted)
    grid = {"grid": {"seeds": [0, 1]}}
    imbalance_vlm.run(recipe | grid, {"training.epochs": 1})
    assert len(listed) == 1
    imbalance_vlm.run(recipe | grid, {"training.epochs": 1})
    assert len(listed) == 2, "another call looks again: files may have changed"
