"""The experts head: three classifiers in training, one linear mean of them out of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.heads.experts import ExpertsHead

WIDTH, CLASSES, BATCH = 8, 5, 6


def stirred_head(seed: int = 0, adapter: int = 0, normalise: bool = True) -> ExpertsHead:
    torch.manual_seed(seed)
    head = ExpertsHead(WIDTH, CLASSES, adapter=adapter, normalise=normalise)
    with torch.no_grad():
        for parameter in head.parameters():  # biases and adapters start at zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def features() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("adapter", [0, 3])
def test_gives_each_expert_in_training_and_their_mean_in_evaluation(adapter: int) -> None:
    head = stirred_head(adapter=adapter)
    per_expert = head.train()(features())
    assert per_expert.shape == (BATCH, 3, CLASSES)
    unit = F.normalize(features(), dim=1) * WIDTH**0.5
    for expert in range(3):
        read = head.adapters[expert](unit) if adapter else unit
        torch.testing.assert_close(per_expert[:, expert], head.layers[expert](read))
    assert not torch.allclose(per_expert[:, 0], per_expert[:, 1])
    torch.testing.assert_close(head.eval()(features()), per_expert.mean(1))


@pytest.mark.parametrize("adapter", [0, 3])
def test_each_expert_is_linear_in_the_embeddings(adapter: int) -> None:
    head = stirred_head(adapter=adapter).eval()
    embeddings = head.embed(features())
    weights, biases = head.experts()
    per_expert = torch.einsum("nd,ecd->nec", embeddings, weights) + biases
    torch.testing.assert_close(per_expert, head.train()(features()))


@pytest.mark.parametrize("adapter", [0, 3])
def test_mixture_uses_the_weights_of_its_buffer(adapter: int) -> None:
    head = stirred_head(adapter=adapter)
    per_expert = head.train()(features())
    head.mixture.copy_(torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(head.eval()(features()), per_expert[:, :2].mean(1))
    other = stirred_head(seed=1, adapter=adapter).eval()
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(features()), head(features()))


def test_length_of_features_matters_only_without_normalisation() -> None:
    torch.testing.assert_close(stirred_head()(7 * features()), stirred_head()(features()))
    raw = stirred_head(normalise=False).eval()
    weight, bias = raw.classifier()
    torch.testing.assert_close(raw(features()), features() @ weight.t() + bias)


@pytest.mark.parametrize("adapter", [0, 3])
def test_sade_trains_each_expert_towards_its_own_distribution(adapter: int) -> None:
    """On images that say nothing the experts learn pi, a uniform distribution, and inv_pi^2."""
    head = stirred_head(adapter=adapter).train()
    counts = [60, 20, 10, 6, 4]
    targets = torch.arange(5).repeat_interleave(torch.tensor(counts))
    constant = torch.ones(100, WIDTH)
    loss, optimizer = create_loss("sade", counts), torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss(head(constant), targets).backward()
        optimizer.step()
    share = head(constant)[0].softmax(1)  # (3, C)
    prior = torch.tensor(counts) / 100
    torch.testing.assert_close(share[0], prior, atol=0.01, rtol=0)
    torch.testing.assert_close(share[1], torch.full((5,), 0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(share[2], prior.flip(0) ** 2 / (prior**2).sum(), atol=0.01, rtol=0)
