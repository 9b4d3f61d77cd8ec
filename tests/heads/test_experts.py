"""The experts head: three classifiers in training, one linear mean of them out of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.heads.experts import ExpertsHead

WIDTH, CLASSES, BATCH = 8, 5, 6


def made(seed: int = 0, adapter: int = 0, normalise: bool = True) -> ExpertsHead:
    torch.manual_seed(seed)
    head = ExpertsHead(WIDTH, CLASSES, adapter=adapter, normalise=normalise)
    with torch.no_grad():
        for parameter in head.parameters():  # biases and adapters start at zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def features() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("adapter", [0, 3])
def test_gives_each_expert_in_training_and_their_mean_out_of_it(adapter: int) -> None:
    head = made(adapter=adapter)
    of_each = head.train()(features())
    assert of_each.shape == (BATCH, 3, CLASSES)
    unit = F.normalize(features(), dim=1) * WIDTH**0.5
    for expert in range(3):
        read = head.adapters[expert](unit) if adapter else unit
        torch.testing.assert_close(of_each[:, expert], head.layers[expert](read))
    assert not torch.allclose(of_each[:, 0], of_each[:, 1])
    torch.testing.assert_close(head.eval()(features()), of_each.mean(1))


@pytest.mark.parametrize("adapter", [0, 3])
def test_the_classifier_is_linear_in_the_embeddings(adapter: int) -> None:
    head = made(adapter=adapter).eval()
    embeddings = head.embed(features())
    weight, bias = head.classifier()
    torch.testing.assert_close(embeddings @ weight.t() + bias, head(features()))
    weights, biases = head.experts()
    of_each = torch.einsum("nd,ecd->nec", embeddings, weights) + biases
    torch.testing.assert_close(of_each, head.train()(features()))


@pytest.mark.parametrize("adapter", [0, 3])
def test_the_mixture_is_what_the_buffer_says(adapter: int) -> None:
    head = made(adapter=adapter)
    of_each = head.train()(features())
    head.mixture.copy_(torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(head.eval()(features()), of_each[:, :2].mean(1))
    other = made(seed=1, adapter=adapter).eval()
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(features()), head(features()))


def test_features_of_any_length_are_read_alike_unless_they_are_not_normalised() -> None:
    torch.testing.assert_close(made()(7 * features()), made()(features()))
    raw = made(normalise=False).eval()
    weight, bias = raw.classifier()
    torch.testing.assert_close(raw(features()), features() @ weight.t() + bias)


@pytest.mark.parametrize("adapter", [0, 3])
def test_sade_trains_each_expert_towards_its_own_distribution(adapter: int) -> None:
    """On images that say nothing the experts learn pi, a uniform distribution, and inv_pi^2."""
    head = made(adapter=adapter).train()
    counts = [60, 20, 10, 6, 4]
    targets = torch.arange(5).repeat_interleave(torch.tensor(counts))
    grey = torch.ones(100, WIDTH)
    loss, optimizer = create_loss("sade", counts), torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss(head(grey), targets).backward()
        optimizer.step()
    share = head(grey)[0].softmax(1)  # (3, C)
    prior = torch.tensor(counts) / 100
    torch.testing.assert_close(share[0], prior, atol=0.01, rtol=0)
    torch.testing.assert_close(share[1], torch.full((5,), 0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(share[2], prior.flip(0) ** 2 / (prior**2).sum(), atol=0.01, rtol=0)
