"""Fixed prototypes and guided classifiers, against plain NumPy loops written from their equations."""

from __future__ import annotations

import copy
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.etf_dot_regression import ETFDotRegression
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.prototypes import Kind, create_prototypes
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.prototype import PrototypeHead, PrototypeKind
from imbalance_vlm.heads.prototype_guided import PrototypeGuidedHead, moved_means
from tests.contracts import counting_fetches, refuses

WIDTH, CLASSES, BATCH = 8, 5, 12
COUNTS = (60, 20, 8, 3, 1)
SETTINGS: list[tuple[type[Head], dict[str, Any]]] = [
    (PrototypeHead, {}),
    (PrototypeHead, {"map": "adapter", "adapter": 6}),
    (PrototypeHead, {"normalise": False}),
    (PrototypeHead, {"map": "adapter", "adapter": 6, "normalise": False}),
    (PrototypeGuidedHead, {}),
    (PrototypeGuidedHead, {"adapter": 6}),
    (PrototypeGuidedHead, {"guide": "prototype", "adapter": 6}),
    (PrototypeGuidedHead, {"bias": False}),
]

Array = NDArray[np.float64]


def features(rows: int = BATCH, seed: int = 1) -> Tensor:
    return 3 * torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def targets(rows: int = BATCH) -> Tensor:
    return torch.arange(rows) % CLASSES


def stirred(build: type[Head], settings: dict[str, Any]) -> Head:
    """A head away from where it starts: identities and zeros hide mistakes."""
    torch.manual_seed(0)
    head = build(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), **settings)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def unit(row: Array) -> Array:
    return row / np.sqrt((row * row).sum())


def mapped(head: Any, row: Array, map: nn.Module | None) -> Array:
    """A linear map or a residual bottleneck of one row, entry by entry."""
    if map is None:
        return row
    values = {key: value.detach().double().numpy() for key, value in map.state_dict().items()}
    if "weight" in values:
        return np.array([float(w @ row) + b for w, b in zip(values["weight"], values["bias"], strict=True)])
    hidden = [max(0.0, float(w @ row) + b) for w, b in zip(values["down.weight"], values["down.bias"], strict=True)]
    change = [
        sum(a * h for a, h in zip(w, hidden, strict=True)) + b
        for w, b in zip(values["up.weight"], values["up.bias"], strict=True)
    ]
    return row + np.array(change)


def prototype_logits(head: PrototypeHead, rows: Tensor) -> Array:
    """z_c = s cos(e, p_c), or e . p_c."""
    made = np.zeros((len(rows), CLASSES))
    for i, row in enumerate(rows.double().numpy()):
        e = mapped(head, unit(row) * np.sqrt(WIDTH), head.map)
        for c, p in enumerate(head.prototypes.double().numpy()):
            dot = float(sum(a * b for a, b in zip(e, p, strict=True)))
            made[i, c] = 25.0 * dot / np.sqrt(float((e * e).sum())) if head.normalise else dot
    return made


def guided_logits(head: PrototypeGuidedHead, rows: Tensor, alpha: float = 1.0, scale: float = 25.0) -> Array:
    """z_c = w_c . e + b_c + alpha s cos(e, m_c), e of norm sqrt(w)."""
    weight = head.layer.weight.detach().double().numpy()
    bias = np.zeros(CLASSES) if head.layer.bias is None else head.layer.bias.detach().double().numpy()
    made = np.zeros((len(rows), CLASSES))
    for i, row in enumerate(rows.double().numpy()):
        e = unit(mapped(head, unit(row) * np.sqrt(WIDTH), head.adapter)) * np.sqrt(WIDTH)
        for c, m in enumerate(head.means.double().numpy()):
            made[i, c] = weight[c] @ e + bias[c] + alpha * scale * float(unit(e) @ unit(m))
    return made


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_logits_are_their_equation(build: type[Head], settings: dict[str, Any]) -> None:
    head = stirred(build, settings)
    wanted = (prototype_logits if build is PrototypeHead else guided_logits)(head, features())  # type: ignore[operator]
    torch.testing.assert_close(head(features()).double().detach(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    trivial = features() @ torch.ones(WIDTH, CLASSES)
    assert not torch.allclose(trivial.double(), torch.from_numpy(wanted), rtol=0.1)


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_logits_are_linear_in_the_embedding(build: type[Head], settings: dict[str, Any]) -> None:
    head = stirred(build, settings)
    embeddings = head.embed(features())
    weight, bias = head.classifier()
    assert weight.shape == (CLASSES, WIDTH)
    wanted = embeddings @ weight.t() + (0.0 if bias is None else bias)
    torch.testing.assert_close(head(features()), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.classify(embeddings), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_every_parameter_moves_and_nothing_else(build: type[Head], settings: dict[str, Any]) -> None:
    """With weight decay at 1, a prototype that were a parameter would be gone after a few steps."""
    head = stirred(build, settings)
    before = copy.deepcopy(head.state_dict())
    objective = Objective(head, create_loss("cross_entropy", COUNTS))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        objective(features(), targets()).backward()
        optimizer.step()
    trained = {key for key, _ in head.named_parameters()}
    for key, value in head.state_dict().items():
        moves = key in trained or (key == "means" and settings.get("guide", "class_mean") == "class_mean")
        assert torch.equal(value, before[key]) is not moves, key


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_its_state_is_all_of_it(build: type[Head], settings: dict[str, Any]) -> None:
    head = stirred(build, settings)
    head.observe(head.embed(features()).detach(), targets())
    other = build(WIDTH, CLASSES, torch.zeros(CLASSES, WIDTH), **settings)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features()), head(features()))
    other.observe(other.embed(features(seed=2)).detach(), targets())
    head.observe(head.embed(features(seed=2)).detach(), targets())
    assert torch.equal(other(features()), head(features()))


@pytest.mark.parametrize(("build", "settings"), SETTINGS)
def test_it_moves_whole_and_works_in_bfloat16(build: type[Head], settings: dict[str, Any]) -> None:
    head = stirred(build, settings).to("meta")
    head.observe(head.embed(features().to("meta")).detach(), targets().to("meta"))
    assert head(features().to("meta")).device.type == "meta"
    low = stirred(build, settings).to(torch.bfloat16)
    low.observe(low.embed(features().bfloat16()).detach(), targets())
    made = low(features().bfloat16())
    assert made.dtype == torch.bfloat16
    assert torch.isfinite(made).all()


def test_kinds_are_those_of_create_prototypes() -> None:
    assert get_args(PrototypeKind) == get_args(Kind)


# -- fixed prototypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"map": "adapter"}])
def test_a_prototype_head_starts_from_the_features_themselves(settings: dict[str, Any]) -> None:
    head = PrototypeHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), **settings)
    torch.testing.assert_close(head.embed(features()), F.normalize(features(), dim=-1))
    raw = PrototypeHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), normalise=False, **settings)
    torch.testing.assert_close(raw.embed(features()).norm(dim=1), torch.full((BATCH,), WIDTH**0.5))


def dot_regression_gradient(embeddings: Array, labels: Array, prototypes: Array) -> Array:
    """Of mean_i (h_i . m - |h_i|)^2 / (2 |h_i|), |h| held: (cos(h_i, m) - 1) m / N, with m the label's prototype."""
    made = np.zeros_like(embeddings)
    for i, (h, y) in enumerate(zip(embeddings, labels, strict=True)):
        m = prototypes[y]
        cosine = sum(a * b for a, b in zip(h, m, strict=True)) / np.sqrt((h * h).sum())
        made[i] = (cosine - 1.0) * m / len(embeddings)
    return made


def test_dot_regression_pulls_each_embedding_to_its_prototype_alone() -> None:
    head = stirred(PrototypeHead, {"normalise": False}).double()
    embeddings = head.embed(features().double()).detach().requires_grad_()
    loss = ETFDotRegression(LongTail(COUNTS))(head.classify(embeddings), targets(), embeddings)
    (got,) = torch.autograd.grad(loss, embeddings)
    wanted = dot_regression_gradient(embeddings.detach().numpy(), targets().numpy(), head.prototypes.numpy())
    torch.testing.assert_close(got, torch.from_numpy(wanted))
    (other,) = torch.autograd.grad(F.cross_entropy(head.classify(embeddings), targets()), embeddings)
    assert not torch.allclose(got, other, rtol=0.1)


def onto_the_simplex(**settings: Any) -> Tensor:
    """Cosines (3, 3) between three classes, close together at first, after dot regression."""
    torch.manual_seed(0)
    head = PrototypeHead(WIDTH, 3, create_prototypes(3, WIDTH), **settings)
    centres = F.normalize(torch.ones(WIDTH) + 0.4 * torch.randn(3, WIDTH), dim=1)
    loss, optimizer = ETFDotRegression(LongTail((9, 3, 1))), torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(200):
        embeddings = head.embed(centres)
        optimizer.zero_grad()
        loss(head.classify(embeddings), torch.arange(3), embeddings).backward()
        optimizer.step()
    unit = F.normalize(head.embed(centres), dim=1)
    return (unit @ unit.t()).detach()


def test_dot_regression_brings_unit_embeddings_onto_the_simplex() -> None:
    """Raw ones only get longer along their prototype: what they have across it stays, as nothing pulls at it."""
    wanted = torch.full((3, 3), -0.5).fill_diagonal_(1.0)
    torch.testing.assert_close(onto_the_simplex(scale=1.0), wanted, rtol=0, atol=0.03)
    assert (onto_the_simplex(normalise=False) - wanted).abs().max() > 0.5


def test_there_may_be_more_classes_than_twice_the_width() -> None:
    classes = 3 * WIDTH
    head = PrototypeHead(WIDTH, classes, create_prototypes(classes, WIDTH, steps=20))
    logits = head(features())
    assert logits.shape == (BATCH, classes)
    F.cross_entropy(logits, torch.arange(BATCH)).backward()
    assert head.map.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("given", [None, torch.zeros(CLASSES, WIDTH + 1), torch.zeros(CLASSES - 1, WIDTH)])
def test_prototypes_that_do_not_fit_are_refused(given: Tensor | None) -> None:
    with pytest.raises(InputError, match=r"`directions` must be prototypes of shape \(5, 8\), got"):
        PrototypeHead(WIDTH, CLASSES, given)


# -- the guide -------------------------------------------------------------------------------------------------------


def means_in_a_loop(means: Array, embeddings: Array, labels: list[int], momentum: float) -> Array:
    moved = means.copy()
    for c in range(len(means)):
        rows = [unit(e) for e, y in zip(embeddings, labels, strict=True) if y == c]
        if rows:
            batch = sum(rows) / len(rows)
            moved[c] = momentum * means[c] + (1 - momentum) * batch if means[c].any() else batch
    return moved


def test_class_means_move_as_their_equation() -> None:
    head = PrototypeGuidedHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH)).double()
    head.means[2] = 0  # a class of which nothing is known
    start = wanted = head.means.numpy().copy()
    for seed, labels in enumerate(([0, 0, 1, 0], [1, 2, 2, 4], [2, 0, 0, 0])):  # class 3 never comes
        embeddings = head.embed(features(4, seed).double())
        head.observe(embeddings, torch.tensor(labels))
        wanted = means_in_a_loop(wanted, embeddings.numpy(), labels, 0.9)
        torch.testing.assert_close(head.means, torch.from_numpy(wanted))
    assert not np.allclose(wanted[:3], start[:3])
    assert np.array_equal(wanted[3], start[3])
    assert not head.means.requires_grad


def test_momentum_is_a_setting_and_nothing_is_fetched() -> None:
    head = PrototypeGuidedHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), momentum=0.0)
    with counting_fetches() as count:
        head.observe(features(), targets())
    assert count["fetches"] == 0
    rows = F.normalize(features(), dim=1)
    torch.testing.assert_close(head.means[1], rows[targets() == 1].mean(0))


def test_means_count_exactly_in_bfloat16() -> None:
    rows = torch.ones(1000, 2, dtype=torch.bfloat16)
    moved = moved_means(torch.zeros(1, 2, dtype=torch.bfloat16), rows, torch.zeros(1000, dtype=torch.int64), 0.9)
    torch.testing.assert_close(moved.float(), torch.full((1, 2), 0.5**0.5), rtol=0.01, atol=0)


def test_without_directions_the_guide_starts_with_the_first_batch() -> None:
    head = PrototypeGuidedHead(WIDTH, CLASSES, init="random")
    torch.testing.assert_close(head(features()), F.linear(head.embed(features()), head.layer.weight, head.layer.bias))
    head.observe(head.embed(features()), targets())
    assert not torch.allclose(head(features()), F.linear(head.embed(features()), head.layer.weight, head.layer.bias))


def test_alpha_and_scale_are_the_strength_of_the_guide() -> None:
    def made(**settings: float) -> PrototypeGuidedHead:
        torch.manual_seed(0)
        return PrototypeGuidedHead(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), **settings)  # type: ignore[arg-type]

    for alpha, scale in ((0.5, 25.0), (2.0, 3.0), (0.0, 25.0)):
        head = made(alpha=alpha, scale=scale)
        wanted = guided_logits(head, features(), alpha, scale)
        torch.testing.assert_close(head(features()).double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head(features()), F.linear(head.embed(features()), head.layer.weight, head.layer.bias))


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment"])
def test_a_prior_added_to_the_logits_is_one_added_to_the_linear_part(name: str) -> None:
    """The oracle adds log pi to the linear part before the guide; vs, which divides, is not of this kind."""
    head = stirred(PrototypeGuidedHead, {}).double()
    embeddings = head.embed(features().double())
    linear = F.linear(embeddings, head.layer.weight, head.layer.bias).detach().numpy()
    guide = head.classify(embeddings).detach().numpy() - linear
    wanted = []
    for row, held, y in zip(linear, guide, targets().tolist(), strict=True):
        shifted = [z + np.log(n / sum(COUNTS)) for z, n in zip(row, COUNTS, strict=True)]
        whole = [z + g for z, g in zip(shifted, held, strict=True)]
        wanted.append(np.log(sum(np.exp(z - whole[y]) for z in whole)))
    logits = head.classify(embeddings)
    got = create_loss(name, COUNTS, reduction="none")(logits, targets())
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))
    for other in ("cross_entropy", "vs"):
        values = create_loss(other, COUNTS, reduction="none")(logits, targets())
        assert not torch.allclose(values, torch.tensor(wanted, dtype=torch.float64), rtol=0.01)


def test_the_guide_gives_no_gradient_and_can_be_moved_before_the_backward_pass() -> None:
    """`observe` comes between the loss and its gradient: the gradient must be that of the means before it."""
    head = stirred(PrototypeGuidedHead, {"adapter": 6})
    still = copy.deepcopy(head)
    F.cross_entropy(still(features()), targets()).backward()
    embeddings = head.embed(features())
    loss = F.cross_entropy(head.classify(embeddings), targets())
    head.observe(embeddings.detach(), targets())
    loss.backward()
    for one, other in zip(head.parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_guides_that_cannot_work_are_refused() -> None:
    prototypes = create_prototypes(CLASSES, WIDTH)
    refuses(lambda: PrototypeGuidedHead(WIDTH, CLASSES, prototypes, guide="prototype"), "adapter")
    refuses(lambda: PrototypeGuidedHead(WIDTH, CLASSES, None, guide="prototype", adapter=4), "directions")
    refuses(lambda: PrototypeGuidedHead(WIDTH, CLASSES, prototypes[:, 1:]), "directions")
