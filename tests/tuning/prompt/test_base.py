"""Contracts of prompt heads and of the methods that learn text."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.regularizers.text_anchor import external_names
from imbalance_vlm.components import catalogue
from imbalance_vlm.heads.base import Head
from imbalance_vlm.training.averaging import Ema
from imbalance_vlm.tuning.base import TuningContext
from imbalance_vlm.tuning.prompt.base import PromptText
from tests.tuning.prompt import vision_models
from tests.tuning.prompt.contexts import COUNTS, no_plain_head, tuning_of
from tests.tuning.prompt.text_models import (
    NAMES,
    NOVEL,
    context_of,
    encoder,
    head_of,
    images,
    sentences,
    text_by_open_clip,
)

PROMPTS = catalogue.PROMPTS.names()
WITH_TEXT = [name for name in PROMPTS if name != "vpt"]


def test_the_classifier_is_the_logits() -> None:
    head = head_of()
    features, _ = images()
    weight, bias = head.classifier()
    assert bias is None
    torch.testing.assert_close(F.linear(head.embed(features), weight), head(features))


def test_the_state_is_the_context_alone() -> None:
    head = head_of()
    assert list(head.state_dict()) == ["context"]
    assert not list(head.children())
    head(images()[0]).sum().backward()
    twin = copy.deepcopy(head)
    assert twin.prompted.tower is head.prompted.tower
    assert twin.text is None
    assert head.text is not None
    twin.context.data += 1.0
    assert not torch.equal(twin(images()[0]), head(images()[0]))
    average = Ema(head, 0.5)
    average.update(head)
    assert torch.equal(average.state()["context"], head.context)


def test_names_are_encoded_once_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    head, calls = head_of(), []
    encode = type(head.prompted).__call__

    def counted(self: Any, *prompt: Any) -> Tensor:
        calls.append(prompt)
        return encode(self, *prompt)

    monkeypatch.setattr(type(head.prompted), "__call__", counted)
    features, _ = images()
    head(features), head(features)
    assert len(calls) == 2
    assert head.text is not None
    assert head.text.requires_grad
    head.eval()
    before = head(features)
    head(features), head.classifier()
    assert len(calls) == 3
    assert not before.requires_grad
    head.load_state_dict({"context": head.context.detach() + 0.1})
    after = head(features)
    assert len(calls) == 4
    assert not torch.equal(before, after)
    assert not head.text.requires_grad
    head.train()
    head(features)
    head.eval()
    head(features)
    assert len(calls) == 6


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_the_same_prompt_classifies_other_names(name: str) -> None:
    head = head_of(name)
    other = head.for_names(NOVEL)
    assert other.context is head.context
    features = head.text_of(NOVEL)
    with torch.no_grad():
        head.context += 0.3  # what is learned later applies to the other names too
    context = cast(Tensor, head.prompt()[0])
    expected = text_by_open_clip(NOVEL, context.expand(2, 3, 16))
    torch.testing.assert_close(features(), expected, rtol=0, atol=1e-9)
    other.eval()
    torch.testing.assert_close(other.text_features(), expected.detach(), rtol=0, atol=1e-9)
    assert other(images()[0]).shape == (5, 2)
    assert head(images()[0]).shape == (5, 3)
    features().sum().backward()
    assert head.context.grad is not None


def test_other_names_that_are_too_long_are_refused() -> None:
    with pytest.raises(InputError, match=r"at most 16 tokens .*for class 1"):
        head_of().for_names(("dog", "very " * 12 + "long name"))


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_in_bf16_the_prompt_stays_in_float32(name: str) -> None:
    half: Any = copy.deepcopy(encoder()).float()
    half.precision = "bf16"
    features, targets = images()
    half_head, exact = head_of(name, context_of(encoder=half)), head_of(name)
    logits = half_head(features.float())
    assert half_head.context.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact(features), rtol=0, atol=0.1)
    F.cross_entropy(logits, targets).backward()
    assert half_head.context.grad is not None
    assert bool(half_head.context.grad.isfinite().all())


@pytest.mark.parametrize("names", ["novel", "external"])
def test_a_context_per_class_has_none_for_other_names(names: str) -> None:
    context = context_of(novel_names=NOVEL)
    head = head_of(context=context, csc=True)
    with pytest.raises(InputError, match="needs a context that all classes share"):
        head.for_names(NOVEL)
    with pytest.raises(InputError, match=r"tuning\.csc"):
        anchor_of(context, head, names=names, external=3)


# -- the text side of a run --------------------------------------------------------------------------------------------


def anchor_of(context: TuningContext, head: Head, **settings: Any) -> Any:
    text = tuning_of("coop").text(context, head)
    return catalogue.REGULARIZERS.make({"name": "text_anchor"} | settings, {"text": lambda _section: text})


@pytest.mark.parametrize("names", ["base", "novel", "external"])
@pytest.mark.parametrize(("target", "count"), [("template", 1), ("ensemble", 2)])
def test_an_anchor_holds_the_text_features_of_its_names(names: str, target: str, count: int) -> None:
    context = context_of(novel_names=NOVEL)
    head = head_of(context=context)
    settings = {"names": names, "target": target, "distance": "l1", "weight": 2.0, "external": 3}
    anchor = anchor_of(context, head, **settings)
    features, targets = images()
    loss = catalogue.LOSSES.get("cross_entropy").load()(LongTail(COUNTS))
    frozen = context.encoder.text_features(NAMES, context.templates)
    with_it = Objective(head, loss, [anchor], None, frozen)(features, targets)
    added = (with_it - Objective(head, loss, [], None, frozen)(features, targets)) / 2.0
    anchored = {"base": NAMES, "novel": NOVEL, "external": external_names(PromptText(context, head), 3)}[names]
    text = text_by_open_clip(anchored, head.context.expand(len(anchored), 3, 16))
    expected = (text - sentences(anchored, context.templates[:count])).abs().sum() / len(anchored)
    assert float(added.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_fitting_names_are_those_that_the_head_can_read() -> None:
    context = context_of()
    text = PromptText(context, head_of(context=context))
    long_name = "very " * 12 + "long name"
    assert text.fitting(["dog", long_name, "tea pot"]) == ["dog", "tea pot"]
    names = external_names(text, 100)
    head_of(context=context).prompted.for_names(names).layout(3)  # refuses what is too long


def test_a_head_that_learns_no_text_has_no_text_side() -> None:
    assert tuning_of("coop").text(context_of(), Head()) is None
    assert tuning_of("vpt").text(context_of(), Head()) is None


# -- every loss --------------------------------------------------------------------------------------------------------

FOR_OTHER_HEADS = {"sade", "etf_dot_regression"}
"""Losses for three experts, and for products with fixed prototypes without a scale."""


@pytest.mark.parametrize("loss", [name for name in catalogue.LOSSES.names() if name not in FOR_OTHER_HEADS])
@pytest.mark.parametrize("name", ["coop", "promptsrc"])
def test_every_loss_trains_the_prompts_of_one_tower_and_of_both(name: str, loss: str) -> None:
    clip = vision_models.encoder()
    has_scale = "head_scale" in catalogue.LOSSES.get(loss).settings()
    criterion = create_loss(loss, COUNTS, **({"head_scale": clip.logit_scale} if has_scale else {}))
    tuning, head = vision_models.make(name)
    before = {key: value.detach().clone() for key, value in head.named_parameters()}
    step = vision_models.objective_of(tuning, head, criterion=criterion)
    step.on_epoch(0, 2)
    pixels, targets = vision_models.batch()
    inputs = pixels if tuning.reads_pixels else clip.image_features(pixels, "embedding")
    vision_models.train_steps(step, tuning, 1, inputs=(inputs, targets))
    for key, value in head.named_parameters():
        assert bool(value.isfinite().all()), key
        assert not torch.equal(value, before[key]), key


# -- making and closing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "settings", "message", "methods"),
    [
        ({"class_names": ()}, {}, "at least one class to train on, got none", PROMPTS),
        ({"class_names": ("tea_cup", "cat", "tea cup")}, {}, "got 'tea cup' for class 0 and class 2", PROMPTS),
        ({"kind": "class_token"}, {}, "'embedding', got 'class_token'", PROMPTS),
        ({}, {"n_ctx": 12, "init": None}, r"at most 16 tokens .*got 22 for class 2", WITH_TEXT),
        ({"encoder": object()}, {}, "has none; choose an open_clip encoder", WITH_TEXT),
        (
            {},
            {"n_ctx": 16, "init": "a photo of a"},
            r"number of tokens of `tuning.init`.*which is 4, got 16",
            ["coop", "cocoop", "kgcoop", "prograd"],
        ),
    ],
    ids=["no classes", "a name twice", "another space", "too long", "no text tower", "words and a number"],
)
def test_bad_input_is_refused_when_the_head_is_made(changes: Any, settings: Any, message: str, methods: Any) -> None:
    for name in methods:
        with pytest.raises(InputError, match=message):
            vision_models.make(name, vision_models.context_of(**changes), **settings)


@pytest.mark.parametrize("name", catalogue.PROMPTS.names())
def test_the_encoder_is_frozen_until_close(name: str) -> None:
    context = context_of()
    module = context.encoder.module.requires_grad_(True)
    tuning = tuning_of(name)
    head = tuning.head(context, no_plain_head)
    learned = {id(parameter) for parameter in tuning.parameters(head)}
    assert not any(value.requires_grad for value in module.parameters() if id(value) not in learned)
    tuning.close()
    assert all(parameter.requires_grad for parameter in module.parameters())
