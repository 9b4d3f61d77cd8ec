"""The scaled cosine classifier."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from imbalance_vlm.heads.factory import create_head
from tests.heads.problem import CLASSES, WIDTH, directions, features


def test_logits_are_scaled_cosines() -> None:
    weight = directions()
    head = create_head("cosine", WIDTH, CLASSES, weight, scale=12.0)
    wanted = [[12.0 * float(F.cosine_similarity(f, w, dim=0)) for w in weight] for f in features()]
    torch.testing.assert_close(head(features()), torch.tensor(wanted))


def test_scale_is_known_unless_it_is_learned() -> None:
    fixed, learned = (create_head("cosine", WIDTH, CLASSES, directions(), learn_scale=learn) for learn in (False, True))
    assert (fixed.logit_scale, learned.logit_scale) == (25.0, None)
    assert (fixed.log_scale.requires_grad, learned.log_scale.requires_grad) == (False, True)
