"""CoOp against open_clip's own text encoding of the same prompts, and the start of its context."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.encoders.prompt_layout import Position
from tests.tuning.prompt.contexts import TOKENIZER
from tests.tuning.prompt.text_models import NAMES, cosines, encoder, head_of, images, text_by_open_clip


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True], ids=["shared", "per class"])
@pytest.mark.parametrize("chunk", [None, 1])
def test_coop_is_open_clip_with_vectors_instead_of_words(position: Position, csc: bool, chunk: int | None) -> None:
    head = head_of(position=position, csc=csc, chunk=chunk)
    assert head.context.shape == ((3, 3, 16) if csc else (3, 16))
    features, targets = images()
    logits = head(features)
    context = head.context.detach().clone().requires_grad_()
    expected = cosines(features, text_by_open_clip(NAMES, context.expand(3, 3, 16), position))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    F.cross_entropy(logits, targets).backward()
    F.cross_entropy(expected, targets).backward()
    torch.testing.assert_close(head.context.grad, context.grad, rtol=0, atol=1e-10)
    assert float(cast(Tensor, context.grad).abs().max()) > 1e-4


def test_words_give_the_start_and_the_length_of_the_context() -> None:
    head = head_of(n_ctx=None, init="a photo of a")
    ids = TOKENIZER.encode("a photo of a")
    assert torch.equal(head.context, encoder().module.token_embedding.weight[ids])
    head.eval()
    expected = F.normalize(encoder().module.encode_text(TOKENIZER([f"a photo of a {name}." for name in NAMES])), dim=-1)
    torch.testing.assert_close(head.text_features(), expected.detach(), rtol=0, atol=1e-9)
    per_class = head_of(n_ctx=4, init="a photo of a", csc=True)
    assert per_class.context.shape == (3, 4, 16)
    assert bool((per_class.context == per_class.context[0]).all())
    torch.manual_seed(1)
    assert float(head_of(n_ctx=None).context.detach().std()) == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("init", ["random", None])
@pytest.mark.parametrize("csc", [False, True])
def test_a_random_start_is_normal_and_not_the_word(init: str | None, csc: bool) -> None:
    context = head_of(n_ctx=None, init=init, csc=csc).context.detach()
    assert context.shape == ((3, 4, 16) if csc else (4, 16)), "one token per word would be one token"
    torch.manual_seed(3)
    expected = 0.02 * torch.randn(context.shape)
    torch.testing.assert_close(context, expected.double(), rtol=0, atol=0)
    if csc:
        assert not torch.equal(context[0], context[1])
