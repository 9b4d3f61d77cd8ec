"""SubPT against loops from its equations, and against the training that it is equivalent to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient, PlainGradient
from imbalance_vlm.balancing.gradients.subspace import Subspace, principal_directions
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
    return torch.cat([tensor.flatten() for tensor in tensors])


def snapshots(count: int, seed: int = 1) -> list[dict[str, Tensor]]:
    return [{name: value.detach() for name, value in parameters(seed + k).items()} for k in range(count)]


def test_the_directions_are_principal_components() -> None:
    rows = np.random.default_rng(0).normal(size=(7, SIZE))
    mean = rows.sum(0) / 7
    covariance = np.zeros((SIZE, SIZE))
    for row in rows:
        covariance += np.outer(row - mean, row - mean)
    values, vectors = np.linalg.eigh(covariance)
    best = vectors[:, np.argsort(-values)[:3]]  # (D, 3)
    got = principal_directions(torch.from_numpy(rows), 3).numpy()
    np.testing.assert_allclose(got @ got.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(got.T @ got, best @ best.T, atol=1e-10)


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
    begin = flat(trained.values()).detach()
    for _ in range(steps):
        loss = bowl(flat(trained.values()))
        optimizer.zero_grad()
        gradient.backward(loss, NO_OUTPUTS)
        optimizer.step()
        gradient.after_step()
    return begin, flat(trained.values()).detach()


def subspace(rank: int = 3, keep: int = 6, build: type[Subspace] = Subspace) -> Subspace:
    transform = build(keep=keep, rank=rank)
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


class WithoutProjection(Subspace):
    """Projects the gradient and not the step."""

    after_step = Gradient.after_step


def test_weight_decay_leaves_the_subspace_without_the_projection_of_the_step() -> None:
    transform = subspace(build=WithoutProjection)
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
    plain = descend(PlainGradient(), weight_decay=weight_decay)[1]
    assert float((end - plain).norm()) > 0.1


def test_subspace_of_all_directions_gives_plain_training() -> None:
    everything = descend(subspace(rank=SIZE, keep=SIZE + 1))[1]
    torch.testing.assert_close(everything, descend(PlainGradient())[1], rtol=0, atol=1e-10)


def test_the_gradient_outside_of_the_subspace_is_removed_in_float32() -> None:
    transform = subspace()
    trained = {name: nn.Parameter(value.detach().float()) for name, value in parameters().items()}
    transform.start(trained)
    goal = torch.linspace(-1, 1, SIZE)
    transform.backward((flat(trained.values()) * goal).sum(), NO_OUTPUTS)
    expected = transform.basis.t() @ (transform.basis @ goal)
    torch.testing.assert_close(flat([p.grad for p in trained.values()]), expected, rtol=0, atol=1e-6)


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
    new = subspace()
    assert (reused.first_epochs, new.first_epochs) == (0, 6)
    torch.testing.assert_close(descend(reused)[1], descend(new)[1], rtol=0, atol=0)
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
