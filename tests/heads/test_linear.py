"""The linear probe's classifier."""

from __future__ import annotations

import torch

from imbalance_vlm.heads.factory import create_head
from tests.heads.problem import CLASSES, WIDTH, directions, features


def test_length_of_features_matters_only_without_normalisation() -> None:
    head = create_head("linear", WIDTH, CLASSES)
    torch.testing.assert_close(head(7 * features()), head(features()))
    raw = create_head("linear", WIDTH, CLASSES, directions(), normalise=False, bias=False)
    torch.testing.assert_close(raw(features()), features() @ directions().t())
