"""Gradient transforms against loops from their equations, and against the training that they are equivalent to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.gradients.prograd import ProGrad, aligned
from imbalance_vlm.balancing.gradients.subspace import Subspace, principal_directions
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.errors import InputError

NO_OUTPUTS: Any = None
SHAPES = {"context": (3, 4), "net.bias": (5,)}
SIZE = 17


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def snapshots(count: int, seed: int = 1) -> list[dict[str, Tensor]]:
    return [{name: value.detach() for name, value in parameters(seed + k).items()} for k in range(count)]


# -- SubPT -------------------------------------------------------------------------------------------------------------


def test_the_directions_are_principal_components() -> None:
    rows = np.random.default_rng(0).normal(size=(7, SIZE))
    mean = rows.sum(0) / 7
    covariance = np.zeros((SIZE, SIZE))
    for row in rows:
        covariance += np.outer(row - mean, row - mean)
    values, vectors = np.linalg.eigh(covariance)
    best = vectors[:, np.argsort(-values)[:3]]  # (D, 3)
    found = principal_directions(torch.from_numpy(rows), 3).numpy()
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.T @ found, best @ best.T, atol=1e-10)


class Bowl:
    """A quadratic with its minimum far from the start."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.matrix = root @ root.t() / SIZE
        self.middle = 3 * torch.randn(SIZE, generator=generator, dtype=torch.float64)

    def __call__(self, v: Tensor) -> Tensor:
        return 0.5 * (v - self.middle) @ self.matrix @ (v - self.middle)


HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}


def descend(gradient: Gradient, steps: int = 25, **hyper: float) -> tuple[Tensor, Tensor]:
    """Start and end of SGD on the bowl through a transform, as flat vectors."""
    trained, bowl = parameters(), Bowl()
    optimizer = torch.optim.SGD(trained.values(), **(HYPER | hyper))
    gradient.start(trained)
    begin = flat(trained.values())
    for _ in range(steps):
        loss = bowl(torch.cat([parameter.flatten() for parameter in trained.values()]))
        optimizer.zero_grad()
        gradient.backward(loss, NO_OUTPUTS)
        optimizer.step()
        gradient.after_step()
    return begin, flat(trained.values())


def subspace(rank: int = 3, keep: int = 6) -> Subspace:
    transform = Subspace(keep=keep, rank=rank)
    transform.learn(snapshots(keep))
    return transform


def outside(move: Tensor, basis: Tensor) -> float:
    return float((move - basis.t() @ (basis @ move)).norm())


@pytest.mark.parametrize("hyper", [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"nesterov": True}])
def test_momentum_and_weight_decay_stay_in_the_subspace(hyper: dict[str, float]) -> None:
    transform = subspace()
    begin, end = descend(transform, **hyper)
    assert float((end - begin).norm()) > 0.1
    assert outside(end - begin, transform.basis) < 1e-12


def test_weight_decay_leaves_the_subspace_without_the_projection_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subspace, "after_step", Gradient.after_step)
    transform = subspace()
    begin, end = descend(transform)
    assert outside(end - begin, transform.basis) > 0.1


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_in_the_subspace_is_training_of_the_coordinates(weight_decay: float) -> None:
    """SGD with momentum on a in v = v0 + U^T a, where the weight decay is the penalty wd |v|^2 / 2."""
    transform = subspace()
    begin, end = descend(transform, weight_decay=weight_decay)
    bowl, a = Bowl(), torch.zeros(3, dtype=torch.float64)
    velocity = torch.zeros_like(a)
    for _ in range(25):
        v = begin + transform.basis.t() @ a
        slope = bowl.matrix @ (v - bowl.middle) + weight_decay * v
        velocity = 0.9 * velocity + transform.basis @ slope
        a = a - 0.05 * velocity
    torch.testing.assert_close(end, begin + transform.basis.t() @ a, rtol=0, atol=1e-10)
    plain = descend(Gradient(), weight_decay=weight_decay)[1]
    assert float((end - plain).norm()) > 0.1


def test_the_subspace_of_all_directions_is_plain_training() -> None:
    everything = descend(subspace(rank=SIZE, keep=SIZE + 1))[1]
    torch.testing.assert_close(everything, descend(Gradient())[1], rtol=0, atol=1e-10)


def test_the_gradient_outside_of_the_subspace_is_removed_in_float32() -> None:
    transform = subspace()
    trained = {name: nn.Parameter(value.detach().float()) for name, value in parameters().items()}
    transform.start(trained)
    goal = torch.linspace(-1, 1, SIZE)
    transform.backward((flat_with_grad(trained.values()) * goal).sum(), NO_OUTPUTS)
    expected = transform.basis.t() @ (transform.basis @ goal)
    torch.testing.assert_close(flat([p.grad for p in trained.values()]), expected, rtol=0, atol=1e-6)


def flat_with_grad(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_a_parameter_without_gradient_moves_with_the_others() -> None:
    transform, trained = subspace(), parameters()
    transform.start(trained)
    transform.backward(trained["context"].sum(), NO_OUTPUTS)
    goal = torch.cat([torch.ones(12), torch.zeros(5)]).double()
    expected = transform.basis.t() @ (transform.basis @ goal)
    torch.testing.assert_close(flat([p.grad for p in trained.values()]), expected)


def write_first_pass(folder: Path, count: int) -> Path:
    (folder / "first_pass").mkdir(parents=True)
    for epoch, snapshot in enumerate(snapshots(count), start=1):
        save_file(snapshot, folder / "first_pass" / f"epoch_{epoch:03d}.safetensors")
    return folder


def test_the_first_pass_of_a_finished_run_may_be_reused(tmp_path: Path) -> None:
    reused = Subspace(keep=6, rank=3, reuse=write_first_pass(tmp_path / "run", 8))
    own = subspace()
    assert (reused.first_epochs, own.first_epochs) == (0, 6)
    torch.testing.assert_close(descend(reused)[1], descend(own)[1], rtol=0, atol=0)
    assert reused.state_dict() == {}


def test_an_unsuitable_first_pass_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`rank`.*less than `keep`, 5.*got 5"):
        Subspace(keep=5, rank=5)
    with pytest.raises(InputError, match="`reuse`.*first pass of 6 epochs.*with 0"):
        Subspace(keep=6, rank=3, reuse=tmp_path)  # before any training
    folder = write_first_pass(tmp_path / "run", 6)
    with pytest.raises(InputError, match="must be of the parameters that are trained"):
        Subspace(keep=6, rank=3, reuse=folder).start({"context": nn.Parameter(torch.zeros(2))})
    still = Subspace(keep=6, rank=3)
    still.learn(snapshots(3) * 2)  # six prompts, each of them twice
    with pytest.raises(InputError, match=r"`rank`.*at most 2.*got 3"):
        still.start(parameters())


# -- ProGrad -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_conflicting_part_of_a_gradient_is_removed(sign: float, strength: float) -> None:
    rng = np.random.default_rng(0)
    own, guide = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    product = sum(own[i, j] * guide[i, j] for i in range(3) for j in range(4))
    guide *= sign * np.sign(product)
    product = sum(own[i, j] * guide[i, j] for i in range(3) for j in range(4))
    length = np.sqrt(sum(guide[i, j] ** 2 for i in range(3) for j in range(4)))
    unit = guide / length
    expected = own - strength * (product / length) * unit if product < 0 else own
    found = aligned(torch.from_numpy(own), torch.from_numpy(guide), strength)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert (sign < 0 and strength > 0) == (abs(found.numpy() - own).max() > 1e-3)


def test_a_zero_guide_leaves_the_gradient() -> None:
    own = torch.tensor([1.0, -2.0])
    assert aligned(own, torch.zeros(2), 1.0).tolist() == [1.0, -2.0]


def prograd_step(targets: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The transform's gradient of a text-like parameter, the loss's own, and that of the divergence."""
    rng = torch.Generator().manual_seed(3)
    images = nn.functional.normalize(torch.randn(len(targets), 4, generator=rng, dtype=torch.float64), dim=-1)
    frozen = nn.functional.normalize(torch.randn(3, 4, generator=rng, dtype=torch.float64), dim=-1)
    learned = nn.Parameter(torch.randn(3, 4, generator=rng, dtype=torch.float64))

    def forward() -> tuple[Tensor, StepOutputs]:
        text = nn.functional.normalize(learned, dim=-1)
        logits = 10.0 * images @ text.t()
        labels = torch.tensor(targets)
        return nn.functional.cross_entropy(logits, labels), StepOutputs(images, labels, logits, text, frozen)

    transform = ProGrad(10.0, strength=1.0, temperature=2.0)
    transform.start({"text": learned})
    transform.backward(*forward())
    assert learned.grad is not None
    loss, _ = forward()
    (own,) = torch.autograd.grad(loss, learned)
    zero_shot = (10.0 * images @ frozen.t()).numpy() / 2.0
    teacher = np.exp(zero_shot) / np.exp(zero_shot).sum(1, keepdims=True)
    student = torch.log_softmax(forward()[1].logits / 2.0, 1)  # [1]: T^2 times the cross-entropy to the teacher
    total = sum(-teacher[i, c] * student[i, c] for i in range(len(targets)) for c in range(3)) * 4 / len(targets)
    (guide,) = torch.autograd.grad(total, learned)
    return learned.grad, own, guide


def test_prograd_changes_the_gradient_as_the_authors_code_does() -> None:
    conflicts = 0
    for targets in ([0, 1, 2, 0], [1, 2, 0, 0], [2, 0, 1, 1]):
        found, own, guide = prograd_step(targets)
        product = float((own * guide).sum())
        unit = guide / guide.norm()
        expected = own - (own * unit).sum() * unit if product < 0 else own
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        conflicts += product < 0
    assert 0 < conflicts < 3


def test_prograd_needs_learned_text() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    transform = ProGrad(10.0)
    transform.start({"weight": weight})
    logits = torch.ones(1, 2) @ weight
    with pytest.raises(InputError, match="needs a prompt method"):
        transform.backward(logits.sum(), StepOutputs(torch.ones(1, 2), torch.tensor([0]), logits))


# -- interface ---------------------------------------------------------------------------------------------------------


class Plugin(Gradient):
    """A transform that does not mention `is_linear`."""


def test_only_the_plain_gradient_is_linear() -> None:
    assert Gradient().is_linear
    assert not any(transform.is_linear for transform in (ProGrad(1.0), subspace(), Plugin()))
