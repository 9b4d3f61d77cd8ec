"""ProGrad as a prompt method against its equation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.tuning.prompt.text_models import (
    NAMES,
    context_of,
    cosines,
    head_of,
    images,
    objective,
    sentences,
    text_by_open_clip,
)


@pytest.mark.parametrize("chunk", [None, 1])
def test_prograd_removes_what_points_against_the_zero_shot_model(chunk: int | None) -> None:
    features, _ = images()
    zero_shot = cosines(features, sentences(NAMES, context_of().templates)).softmax(1)
    conflicts = 0
    for seed in range(6):
        targets = zero_shot.argmin(1) if seed % 2 else zero_shot.argmax(1)
        head = head_of("prograd", chunk=chunk)
        head.context.data += 0.5 * torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
        step = objective("prograd", head)
        step.gradient.start(dict(head.named_parameters()))
        step.backward(step(features, targets))
        context = head.context.detach().clone().requires_grad_()
        logits = cosines(features, text_by_open_clip(NAMES, context.expand(3, 3, 16)))
        (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets), context, retain_graph=True)
        (guide,) = torch.autograd.grad(-(zero_shot * logits.log_softmax(1)).sum(1).mean(), context)
        product = float((plain * guide).sum())
        expected = plain - product / float((guide**2).sum()) * guide if product < 0 else plain
        torch.testing.assert_close(head.context.grad, expected, rtol=0, atol=1e-6)
        conflicts += product < 0
    assert 0 < conflicts < 6
