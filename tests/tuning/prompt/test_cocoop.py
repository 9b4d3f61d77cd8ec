"""CoCoOp against its equation, image after image."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.tuning.prompt.cocoop import CoCoOpHead
from tests.tuning.prompt.text_models import NAMES, cosines, head_of, images, objective, text_by_open_clip


def cocoop_logits(head: CoCoOpHead, features: Tensor) -> Tensor:
    """Image after image, through two matrices and a threshold."""
    first, _, second = head.net
    rows = []
    for feature in features:
        unit = feature / feature.norm()
        hidden = torch.stack([(row @ unit + b).clamp(min=0) for row, b in zip(first.weight, first.bias, strict=True)])
        shift = torch.stack([row @ hidden + b for row, b in zip(second.weight, second.bias, strict=True)])
        context = torch.stack([token + shift for token in head.context])
        rows.append(cosines(feature[None], text_by_open_clip(NAMES, context.expand(3, 3, 16)))[0])
    return torch.stack(rows)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("chunk", [None, 2])
def test_each_image_has_a_prompt_of_its_own(batch: int, chunk: int | None) -> None:
    head = cast(CoCoOpHead, head_of("cocoop", chunk=chunk))
    assert head.net[0].weight.shape == (1, 16)
    features, targets = images(batch)
    expected = cocoop_logits(head, features)
    trained = list(head.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(expected, targets), trained)
    logits = head(features)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    F.cross_entropy(logits, targets).backward()
    for parameter, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=0, atol=1e-10)
    assert head.text is not None
    assert head.text.shape == (3, 16)
    head.eval()
    with torch.no_grad():
        torch.testing.assert_close(head(features), expected.detach(), rtol=0, atol=1e-9)


def test_the_classifier_is_that_of_the_mean_image() -> None:
    head = cast(CoCoOpHead, head_of("cocoop"))
    embeddings = head.embed(images(7)[0])
    for part in embeddings.split(3):
        head.observe(part, torch.zeros(len(part)))
    torch.testing.assert_close(head.mean, embeddings.mean(0))
    assert set(dict(head.named_parameters())) == {
        "context",
        *(f"net.{n}.{w}" for n in "02" for w in ("weight", "bias")),
    }
    weight, _ = head.classifier()
    context = head.context + head.net(embeddings.mean(0))
    expected = head.logit_scale * text_by_open_clip(NAMES, context.expand(3, 3, 16))
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)


def test_text_is_that_of_the_whole_batch_when_processes_share_it() -> None:
    head = cast(CoCoOpHead, head_of("cocoop")).train()
    step, features = objective("cocoop", head), images(5)[0]
    step.outputs(features)
    assert head.text is not None
    wanted = head.text.detach()
    rest = head.prompted.per_image(head.contexts(head.embed(features[2:])))
    step.outputs(features[:2])
    assert not torch.allclose(head.text, wanted, rtol=0, atol=1e-9)
    step.gather(lambda local: torch.cat([local, rest]))
    torch.testing.assert_close(head.text, wanted, rtol=0, atol=1e-9)
    copy.deepcopy(head)
