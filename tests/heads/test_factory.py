"""Heads by name, and the directions they start from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.cosine import CosineHead
from imbalance_vlm.heads.decoder import DecoderHead
from imbalance_vlm.heads.experts import ExpertsHead
from imbalance_vlm.heads.factory import class_mean_directions, create_head, text_directions
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.heads.prototype_guided import PrototypeGuidedHead
from tests.heads.problem import CLASSES, WIDTH, directions


@pytest.mark.parametrize("name", catalogue.HEADS.names())
def test_head_starts_from_the_given_directions(name: str) -> None:
    start = directions(3)
    state = create_head(name, WIDTH, CLASSES, start).state_dict()
    assert any(value.shape == start.shape and torch.equal(value, start) for value in state.values())


class Rows:
    """A source that holds its features."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: list[Tensor], epoch: int = 0) -> object:
        return ((self.features[batch], self.labels[batch]) for batch in rows)


def test_class_means_are_means_of_unit_features() -> None:
    features, labels = 5 * torch.rand(9, WIDTH) + 0.1, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 4])
    got = class_mean_directions(Rows(features, labels), CLASSES, batch_size=4)
    for label in (0, 1, 2, 4):
        mean = sum(f / f.norm() for f, y in zip(features, labels, strict=True) if y == label)
        torch.testing.assert_close(got[label], mean / mean.norm())
    assert torch.isfinite(got[3]).all(), "a class without images has a direction too"
    tokens = torch.stack([features, torch.zeros_like(features)], dim=1)
    torch.testing.assert_close(class_mean_directions(Rows(tokens, labels), CLASSES), got)


def test_unknown_heads_and_settings_are_refused_in_words() -> None:
    with pytest.raises(InputError, match="unknown head 'cosin'. Did you mean 'cosine'"):
        create_head("cosin", WIDTH, CLASSES)
    with pytest.raises(InputError, match="`scale` must be a number > 0, got 0"):
        create_head("cosine", WIDTH, CLASSES, scale=0)


@pytest.mark.parametrize("name", ["cosine", "linear", "decoder"])
def test_a_start_that_needs_directions_is_refused_without_them(name: str) -> None:
    with pytest.raises(InputError, match="init 'text' needs `directions`"):
        create_head(name, WIDTH, CLASSES, init="text")


@pytest.mark.parametrize("shape", [(CLASSES - 1, WIDTH), (CLASSES, WIDTH + 1), (1, WIDTH)])
@pytest.mark.parametrize("name", catalogue.HEADS.names())
def test_directions_of_another_shape_are_refused(name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"`directions` must have shape \(5, 8\), one row per class, got"):
        create_head(name, WIDTH, CLASSES, torch.ones(shape))


@pytest.mark.parametrize("head", [CosineHead, LinearHead, DecoderHead, ExpertsHead, PrototypeGuidedHead])
def test_a_head_refuses_one_direction_for_all_classes(head: Callable[..., Head]) -> None:
    with pytest.raises(InputError, match=r"`directions` must have shape \(5, 8\), one row per class, got \(1, 8\)"):
        head(WIDTH, CLASSES, torch.ones(1, WIDTH))


class TextTower:
    """An encoder whose text and image features share a space."""

    def text_in(self, kind: str, text: Tensor) -> Tensor:
        return text


def test_class_names_that_are_numbers_give_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    features = torch.eye(2)
    assert torch.equal(text_directions(TextTower(), "embedding", ["cat", "7"], features), features)  # type: ignore[arg-type]
    assert not capsys.readouterr().err
    text_directions(TextTower(), "embedding", ["0", "7"], features)  # type: ignore[arg-type]
    assert "the class names are numbers" in capsys.readouterr().err
    text_directions(TextTower(), "embedding", ["n01440764", "n01443537"], features)  # type: ignore[arg-type]
    assert "identifiers such as 'n01440764'" in capsys.readouterr().err
