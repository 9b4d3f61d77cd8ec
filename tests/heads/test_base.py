"""The interface of a head."""

from __future__ import annotations

import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.heads.linear import LinearHead


def test_head_without_class_names_refuses_other_classes() -> None:
    with pytest.raises(InputError, match="need a head that reads class names, got LinearHead; use tuning"):
        LinearHead(4, 3).for_names(["heron"], lambda names: torch.zeros(1, 4))
