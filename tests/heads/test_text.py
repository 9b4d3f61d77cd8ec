"""The zero-shot classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm import InputError
from imbalance_vlm.heads.factory import create_head
from imbalance_vlm.heads.text import TextHead
from tests.heads.problem import CLASSES, WIDTH, directions, features


def test_logits_are_cosines_times_the_scale_of_the_model() -> None:
    head = TextHead(directions(), 30.0)
    wanted = [[30.0 * float(F.cosine_similarity(f, t, dim=0)) for t in directions()] for f in features()]
    torch.testing.assert_close(head(features()), torch.tensor(wanted))
    assert head.logit_scale == 30.0


def test_nothing_is_trained_and_text_features_are_saved() -> None:
    head = create_head("text", WIDTH, CLASSES, directions())
    assert not list(head.parameters())
    assert "weight" in head.state_dict()


def test_text_features_are_required_and_one_row_per_class() -> None:
    with pytest.raises(InputError, match=r"needs `directions` of shape \(5, 8\), got None"):
        create_head("text", WIDTH, CLASSES)
    with pytest.raises(InputError, match=r"`text` must be text features of shape \(C, d\), got \(8,\)"):
        TextHead(torch.zeros(WIDTH))


def test_other_names_are_classified_by_their_own_text_features() -> None:
    def text_features(names: object) -> Tensor:
        assert names == ["heron", "owl"]
        return directions(5)[:2]

    other = TextHead(directions(), 30.0).for_names(["heron", "owl"], text_features)
    torch.testing.assert_close(other(features()), 30.0 * F.normalize(features(), dim=1) @ directions(5)[:2].t())
    with pytest.raises(InputError, match="`text_features` must give the text features of the new names, got none"):
        TextHead(directions()).for_names(["heron"])
