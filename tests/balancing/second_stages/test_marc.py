"""MARC: its norms."""

from __future__ import annotations

import torch

from imbalance_vlm.balancing.second_stages.base import Stage
from imbalance_vlm.balancing.second_stages.marc import MARC
from tests.balancing.second_stages import oracles
from tests.balancing.second_stages.problem import COUNTS, WIDTH, fitted


def test_norms_of_marc_are_saved_and_move(stage: Stage) -> None:
    second = fitted(MARC, stage)
    norms = torch.tensor([oracles.norm(row) for row in stage.weight().tolist()])
    torch.testing.assert_close(second.state_dict()["norms"], norms)
    blank = MARC(WIDTH, len(COUNTS))
    blank.load_state_dict(second.state_dict())
    torch.testing.assert_close(blank.get_buffer("norms"), norms)
    assert blank.to(torch.float64).get_buffer("norms").dtype == torch.float64
    assert blank.to("meta").get_buffer("norms").device.type == "meta"
