"""DisAlign: where its training starts."""

from __future__ import annotations

import torch

from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.balancing.second_stages.disalign import DisAlign
from tests.balancing.second_stages.problem import EMBEDDINGS, fitted


def test_disalign_starts_from_the_first_stages_ranking(stage: Stage) -> None:
    """a 1 and b 0 give (1 + s) z, not z: the ranking is that of z."""
    second = fitted(DisAlign, stage, lr=1e-12)
    before, after = stage.head.classify(EMBEDDINGS), second(EMBEDDINGS)
    ratio = after / before  # (10, C), 1 + s in each row
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    assert ((ratio > 1) & (ratio < 2)).all()
