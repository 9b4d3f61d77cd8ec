"""The lightweight decoder."""

from __future__ import annotations

import pytest
import torch

from imbalance_vlm import InputError
from imbalance_vlm.heads.factory import create_head
from tests.heads.problem import CLASSES, WIDTH, tokens


@pytest.mark.parametrize(("width", "millions"), [(768, 8.87), (1024, 15.76)])
def test_number_of_parameters_is_the_published_one(width: int, millions: float) -> None:
    with torch.device("meta"):
        head = create_head("decoder", width, 1000)
    blocks = sum(p.numel() for key, p in head.named_parameters() if not key.startswith("layer."))
    assert round(blocks / 1e6, 2) == millions


def test_class_token_is_read_after_attention_to_all_tokens() -> None:
    head = create_head("decoder", WIDTH, CLASSES).eval()
    changed = tokens()
    changed[:, -1] = -changed[:, -1]
    assert not torch.allclose(head(changed), head(tokens()))
    shuffled = tokens()[:, [0, 3, 1, 2]]  # the decoder adds no positions
    torch.testing.assert_close(head(shuffled), head(tokens()), rtol=1e-4, atol=1e-5)


def test_attention_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="`heads` must divide the width of the tokens, 8, got 3"):
        create_head("decoder", WIDTH, CLASSES, heads=3)
