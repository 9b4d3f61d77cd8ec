"""Contracts of the prompt methods that read images, and the prompts of IVLP and MaPLe."""

from __future__ import annotations

import copy
import math

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from imbalance_vlm import InputError
from imbalance_vlm.training.averaging import Ema
from imbalance_vlm.tuning.prompt.maple import MaPLeHead
from tests.tuning.prompt.contexts import TEXT
from tests.tuning.prompt.vision_models import (
    METHODS,
    TWO_TOWERS,
    batch,
    context_of,
    encoder,
    every,
    make,
    model,
    objective_of,
    slow_pass,
    train_steps,
)


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_logits_are_cosines_of_two_prompted_towers(name: str) -> None:
    _, head = make(name)
    head.eval()
    pixels = batch()[0]
    net = copy.deepcopy(model()).visual
    f = F.normalize(slow_pass(net, pixels, head.vision()), dim=-1)
    context = torch.cat([head.context, head.rest])
    t = head.prompted(context, head.deep)
    scale = math.exp(2.0)
    torch.testing.assert_close(head(pixels), scale * f @ t.T, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(head.vision()[0], torch.zeros(()))


@pytest.mark.parametrize(("name", "learned"), [("ivlp", 2), ("maple", 2), ("promptsrc", 4)])
def test_the_context_starts_from_words_and_their_rest_is_not_learned(name: str, learned: int) -> None:
    tuning, head = make(name)
    words = head.prompted.words_to_context("a photo of a")
    assert torch.equal(head.prompt()[0], words)
    assert (len(head.context), len(head.rest)) == (learned, 4 - learned)
    train_steps(objective_of(tuning, head), tuning)
    assert not torch.allclose(head.prompt()[0][:learned], words[:learned])
    assert torch.equal(head.prompt()[0][learned:], words[learned:])
    assert "rest" not in head.state_dict()


@pytest.mark.parametrize("name", ["ivlp", "maple"])
def test_a_context_with_fewer_words_than_tokens(name: str) -> None:
    _, head = make(name, n_ctx=3, init="a")
    assert torch.equal(head.context[:1], head.prompted.words_to_context("a"))
    assert (len(head.context), len(head.rest)) == (3, 0)


@pytest.mark.parametrize("name", TWO_TOWERS)
@pytest.mark.parametrize("init", ["random", None])
def test_a_random_start_is_normal_and_not_the_word(name: str, init: str | None) -> None:
    _, head = make(name, n_ctx=3, init=init)
    torch.manual_seed(3)  # as `make` does
    assert torch.equal(head.context, 0.02 * torch.randn(3, 16))
    assert (len(head.context), len(head.rest)) == (3, 0)


@pytest.mark.parametrize(
    ("name", "depth", "text", "image"),
    [("ivlp", 9, 2, 3), ("ivlp", 2, 2, 2), ("ivlp", 1, 1, 1), ("maple", 9, 2, 2), ("maple", 1, 1, 1)],
)
def test_depth_is_at_most_that_of_the_towers(name: str, depth: int, text: int, image: int) -> None:
    """A text tower of 2 blocks, an image tower of 3: maple couples the two block by block, ivlp does not."""
    tuning, head = make(name, depth=depth)
    assert 1 + len(head.deep) == text
    assert len(head.vision()) == image
    train_steps(objective_of(tuning, head), tuning, 1)


def test_image_tokens_of_maple_are_linear_in_its_text_tokens() -> None:
    _, head = make("maple")
    assert isinstance(head, MaPLeHead)
    prompts = [head.context, *head.deep]
    for number, (tokens, prompt) in enumerate(zip(head.vision(), prompts, strict=True)):
        coupling = head.couplings[number]
        A, b, P = (value.detach().numpy() for value in (coupling.weight, coupling.bias, prompt))
        for n in range(len(P)):
            wanted = [sum(A[i, j] * P[n, j] for j in range(16)) + b[i] for i in range(32)]
            np.testing.assert_allclose(tokens.detach().numpy()[n], wanted, rtol=1e-4, atol=1e-6)
    starts = [coupling.weight for coupling in head.couplings]
    assert not torch.allclose(*starts)


@pytest.mark.parametrize(("name", "coupled"), [("maple", True), ("ivlp", False)])
def test_text_tokens_get_gradients_of_the_image_side_if_coupled(name: str, coupled: bool) -> None:
    _, head = make(name)
    aim = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((head.embed(batch()[0]) * aim).sum(), [head.context, head.deep], allow_unused=True)
    assert all((value is not None and float(value.abs().max()) > 0) == coupled for value in gradients)


@every
def test_the_same_prompts_classify_other_names(name: str) -> None:
    tuning, head = make(name)
    try:
        train_steps(objective_of(tuning, head), tuning)
        names = ("dog", "tea_pot")
        other = head.for_names(names, lambda other: encoder().text_features(other, context_of().templates)).eval()
        logits = head.eval()(batch()[0])
        assert other(batch()[0]).shape == (5, 2)
        assert torch.equal(other.embed(batch()[0]), head.embed(batch()[0]))
        frozen = encoder().text_features(names, context_of().templates)
        features = head.text_of(names)().detach() if head.learns_text else frozen
        torch.testing.assert_close(other.classifier()[0].detach(), math.exp(2.0) * features)
        assert torch.equal(head(batch()[0]), logits)
        assert {id(value) for value in other.parameters()} == {id(value) for value in head.parameters()}
    finally:
        tuning.close()


# -- contracts --------------------------------------------------------------------------------------------------------


@every
def test_half_precision_applies_to_the_towers_alone(name: str) -> None:
    context = context_of(encoder=encoder("bf16"))
    tuning, head = make(name, context)
    try:
        dtypes = []
        block = model().visual.transformer.resblocks[1]
        handle = block.mlp.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
        train_steps(objective_of(tuning, head, context), tuning, 1)
        handle.remove()
        assert set(dtypes) == {torch.bfloat16}
        logits = head.eval()(batch()[0])
        assert bool(logits.isfinite().all())
        assert {logits.dtype, *(value.dtype for value in head.parameters())} == {torch.float32}
    finally:
        tuning.close()


@every
def test_an_average_of_the_prompts_can_be_loaded(name: str) -> None:
    tuning, head = make(name)
    try:
        objective = objective_of(tuning, head)
        train_steps(objective, tuning, 1)
        average = Ema(head, 0.5)
        average.update(head)
        first = {key: value.clone() for key, value in head.state_dict().items()}
        train_steps(objective, tuning, 1)
        average.update(head)
        last = {key: value.clone() for key, value in head.state_dict().items()}
        head.load_state_dict(average.state())
        for key, value in head.state_dict().items():
            average_by_hand = (2 * first[key] + 9 * last[key]) / 11  # the second step's decay is 2 / 11
            torch.testing.assert_close(value, average_by_hand)
    finally:
        tuning.close()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_tower_of_another_kind_is_refused(name: str) -> None:
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}
    net = open_clip.CLIP(16, vision, TEXT).eval()
    with pytest.raises(InputError, match=f"'{name}' needs a vision transformer .*ModifiedResNet"):
        make(name, context_of(encoder=encoder(net=net)))
