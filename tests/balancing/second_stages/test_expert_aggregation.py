"""Weights of the experts from two views of unlabelled images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.second_stages.base import Stage, StageTraining
from imbalance_vlm.balancing.second_stages.expert_aggregation import ExpertAggregation, agreement
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.experts import ExpertsHead
from imbalance_vlm.heads.linear import LinearHead
from tests.balancing.losses import oracles

WIDTH, CLASSES, IMAGES = 4, 4, 400


def stage(head: Head, views: tuple[Tensor, Tensor]) -> Stage:
    unused: Any = None
    return Stage(head.eval(), unused, None, LongTail([9] * CLASSES), unused, lambda: views)


def steady(number: int) -> ExpertsHead:
    """A head whose expert `number` reads what two views share; the others read what differs between them."""
    head = ExpertsHead(WIDTH, CLASSES, normalise=False)
    with torch.no_grad():
        for place, layer in enumerate(head.layers):
            layer.weight.zero_()
            layer.weight[:2, 0 if place == number else 1] = torch.tensor([4.0, -4.0])
    return head


def views(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(IMAGES, WIDTH, generator=generator) for _ in range(2))
    second[:, 0] = first[:, 0]
    return first, second


def test_agreement_is_the_cosine_of_the_mixtures_probabilities() -> None:
    first, second = (torch.randn(5, 3, CLASSES, dtype=torch.float64) for _ in range(2))
    scores = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    shares = oracles.softmax(scores.tolist())
    for i, got in enumerate(agreement(first, second, scores).tolist()):
        p, q = (
            oracles.softmax([sum(v * float(z[i, e, c]) for e, v in enumerate(shares)) for c in range(CLASSES)])
            for z in (first, second)
        )
        wanted = sum(a * b for a, b in zip(p, q, strict=True)) / math.hypot(*p) / math.hypot(*q)
        assert got == pytest.approx(wanted, rel=1e-10)
    p = first.mean(1).softmax(1)
    assert not np.allclose(agreement(first, second, scores), torch.cosine_similarity(p, second.mean(1).softmax(1)))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_expert_that_two_views_agree_on_wins(number: int) -> None:
    aggregation = ExpertAggregation(WIDTH, CLASSES)
    chosen = aggregation.fit(stage(steady(number), views()))
    assert list(chosen) == ["weight_1", "weight_2", "weight_3"]
    assert sum(chosen.values()) == pytest.approx(1.0, abs=1e-3)
    shares = list(chosen.values())
    assert max(range(3), key=shares.__getitem__) == number
    assert shares[number] > 0.6


def test_training_raises_the_agreement_and_stops_before_an_expert_vanishes() -> None:
    head, (first, second) = steady(1), views()
    of_each = [torch.einsum("nd,ecd->nec", view, head.experts()[0].detach()) for view in (first, second)]
    results = []
    for epochs in (1, 5, 500):
        aggregation = ExpertAggregation(WIDTH, CLASSES, settings=StageTraining(epochs=epochs, batch_size=128))
        aggregation.fit(stage(head, (first, second)))
        results.append(
            (float(agreement(*of_each, aggregation.scores.detach()).mean()), float(aggregation.shares().min()))
        )
    even = float(agreement(*of_each, torch.zeros(3)).mean())
    assert even < results[0][0] < results[1][0]
    assert results[2][1] > 0.01  # weights of 500 epochs would be at 0


@pytest.mark.parametrize("adapter", [0, 3])
def test_forward_mixes_the_experts_of_the_head(adapter: int) -> None:
    torch.manual_seed(0)
    head = ExpertsHead(WIDTH, CLASSES, adapter=adapter)
    embeddings = [head.embed(view).detach() for view in views()]
    aggregation = ExpertAggregation(embeddings[0].shape[1], CLASSES, settings=StageTraining(epochs=2, lr=0.5))
    aggregation.fit(stage(head, (embeddings[0], embeddings[1])))
    head.train()
    of_each = head.classify(embeddings[0])
    wanted = sum(share * of_each[:, e] for e, share in enumerate(aggregation.shares()))
    torch.testing.assert_close(aggregation(embeddings[0]), wanted)
    blank = ExpertAggregation(embeddings[0].shape[1], CLASSES)
    blank.load_state_dict(aggregation.state_dict())
    torch.testing.assert_close(blank(embeddings[0]), wanted)


def test_fit_depends_on_the_seed_only_and_keeps_the_head() -> None:
    head = steady(2)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        torch.rand(1 if results else 5)  # the position in torch's stream must not matter
        with torch.no_grad():
            results.append(ExpertAggregation(WIDTH, CLASSES).fit(stage(head, views())))
    assert results[0] == results[1]
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    assert all(parameter.grad is None for parameter in head.parameters())


def test_head_without_experts_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"`stage.head` must have several experts to aggregate, got LinearHead; set head"
    ):
        ExpertAggregation(WIDTH, CLASSES).fit(stage(LinearHead(WIDTH, CLASSES), views()))
