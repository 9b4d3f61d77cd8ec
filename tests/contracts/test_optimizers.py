"""What every optimizer must do.

A contract takes `make(parameters, **settings) -> optimizer`, with parameters or groups of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from tests.contracts import Contract, Suite, global_random_numbers_untouched, noting, offers, over, section_of, variants

Make = Callable[..., torch.optim.Optimizer]


def module(seed: int = 0) -> nn.Module:
    """Matrices, vectors and a scalar."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
        layers.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
        return layers


def loss_of(layers: nn.Module) -> Tensor:
    """The sum of (p - 1)^2 over all parameters."""
    return torch.stack([(parameter - 1).square().sum() for parameter in layers.parameters()]).sum()


def step(layers: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Takes a step and returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(layers)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def state(layers: nn.Module) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in layers.named_parameters()}


def descends(make: Make) -> None:
    """A small step and many small steps lower a quadratic loss."""
    layers = module()
    optimizer = make(list(layers.parameters()), lr=1e-3)
    losses = [step(layers, optimizer) for _ in range(20)]
    assert losses[1] < losses[0], f"the first step raised the loss from {losses[0]} to {losses[1]}"
    assert losses[-1] < losses[1], f"20 steps raised the loss from {losses[1]} to {losses[-1]}"


def trains_every_parameter_once(make: Make) -> None:
    """Of groups too, in which biases, norms and scalars may be treated in another way."""
    for grouped in (False, True):
        layers = module()
        members = list(layers.parameters())
        optimizer = make([{"params": members[:2]}, {"params": members[2:]}] if grouped else members)
        trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert sorted(trained) == sorted(map(id, members)), "the groups must hold every parameter once"


def starts_at_the_rate_of_the_recipe(make: Make) -> None:
    """The training loop scales the `lr` of each group, which must be the recipe's before the first step."""
    for rate in (0.5, 1e-4):
        groups = make(list(module().parameters()), lr=rate).param_groups
        assert all(group["lr"] == rate for group in groups), f"lr {rate} became {[group['lr'] for group in groups]}"


def keeps_the_scales_of_groups(make: Make) -> None:
    """A group's `lr_scale`, which multiplies the schedule's rate, is still there for each of its parameters."""
    layers = module()
    members = list(layers.parameters())
    wanted = {id(p): scale for part, scale in ((members[:2], 0.1), (members[2:], 1.0)) for p in part}
    optimizer = make([{"params": members[:2], "lr_scale": 0.1}, {"params": members[2:], "lr_scale": 1.0}])
    got = {id(p): group.get("lr_scale") for group in optimizer.param_groups for p in group["params"]}
    assert got == wanted, "the groups lost their `lr_scale`"


def obeys_the_rate_of_a_schedule(make: Make) -> None:
    """With the rate 0, which a schedule may end with, no parameter moves."""
    layers = module()
    optimizer = make(list(layers.parameters()))
    before = state(layers)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(layers, optimizer)
    assert all(torch.equal(before[key], value) for key, value in state(layers).items()), "a rate of 0 moves parameters"


def decays_matrices_alone(make: Make) -> None:
    """Where there is no gradient, weight decay shrinks matrices and leaves biases, norms and scalars."""
    layers = module()
    optimizer = make(list(layers.parameters()), lr=0.1, weight_decay=0.5)
    before = state(layers)
    (0.0 * loss_of(layers)).backward()
    optimizer.step()
    for key, value in state(layers).items():
        if value.ndim > 1:
            assert value.norm() < before[key].norm(), f"weight decay leaves the matrix {key}"
        else:
            assert torch.equal(value, before[key]), f"weight decay changes {key}, which is no matrix"


def parameter_without_gradient_stays(make: Make) -> None:
    layers = module()
    optimizer = make(list(layers.parameters()))
    before = state(layers)
    layers[0].weight.sum().backward()  # type: ignore[index]
    optimizer.step()
    moved = [key for key, value in state(layers).items() if not torch.equal(value, before[key])]
    assert moved == ["0.weight"], f"only 0.weight has a gradient, moved: {', '.join(moved)}"


def continues_after_a_resume(make: Make) -> None:
    """A new optimizer that has loaded the state takes the same steps."""
    layers = module()
    optimizer = make(list(layers.parameters()))
    for _ in range(3):
        step(layers, optimizer)
    resumed_layers = copy.deepcopy(layers)
    resumed = make(list(resumed_layers.parameters()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step(layers, optimizer)
        step(resumed_layers, resumed)
    wanted, got = state(layers), state(resumed_layers)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted), "steps after a resume differ"


def global_random_numbers_are_untouched(make: Make) -> None:
    layers = module()
    torch.manual_seed(1)
    with global_random_numbers_untouched("the optimizer"):
        step(layers, make(list(layers.parameters())))


def works_in_half_precision(make: Make) -> None:
    layers = module().to(torch.bfloat16)
    optimizer = make(list(layers.parameters()))
    for _ in range(3):
        step(layers, optimizer)
    for key, value in state(layers).items():
        assert value.dtype == torch.bfloat16, f"{key} became {value.dtype}"
        assert torch.isfinite(value).all(), f"{key} is not finite in bfloat16"


CONTRACTS = (
    descends,
    trains_every_parameter_once,
    starts_at_the_rate_of_the_recipe,
    keeps_the_scales_of_groups,
    obeys_the_rate_of_a_schedule,
    decays_matrices_alone,
    parameter_without_gradient_stays,
    continues_after_a_resume,
    global_random_numbers_are_untouched,
    works_in_half_precision,
)


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    def make(parameters: Any, **changes: Any) -> torch.optim.Optimizer:
        accepted = {name: value for name, value in changes.items() if name in entry.settings()}
        optimizer: torch.optim.Optimizer = entry.make(
            section_of(entry, **{**settings, **accepted}), offers(parameters=parameters)
        )
        return optimizer

    return make


@over(catalogue.OPTIMIZERS, CONTRACTS)
def test_every_optimizer_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.OPTIMIZERS.get(name)
    for settings in variants(entry, lambda entry, settings: maker(entry, settings)(list(module().parameters()))):
        with noting(settings):
            contract(maker(entry, settings))


# -- optimizers that are wrong on purpose ----------------------------------------------------------------------------


class Sound(torch.optim.SGD):
    """SGD with momentum, which breaks no contract."""

    def __init__(self, parameters: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        groups = parameters if isinstance(parameters[0], dict) else [{"params": parameters}]
        super().__init__([part for group in groups for part in self.parts(group, weight_decay)], lr=lr, momentum=0.9)

    def parts(self, group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
        matrices = [parameter for parameter in group["params"] if parameter.ndim > 1]
        vectors = [parameter for parameter in group["params"] if parameter.ndim <= 1]
        return [{**group, "params": matrices, "weight_decay": weight_decay}, {**group, "params": vectors}]

    def trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


class Ascends(Sound):
    def step(self, closure: Any = None) -> Any:
        for parameter in self.trained():
            if parameter.grad is not None:
                parameter.grad.neg_()
        return super().step(closure)


class LeavesOutBiases(Sound):
    def parts(self, group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
        return super().parts(group, weight_decay)[:1]


class ScalesTheRate(Sound):
    def __init__(self, parameters: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr / 2, weight_decay)


class ForgetsTheScales(Sound):
    def parts(self, group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
        return super().parts({"params": group["params"]}, weight_decay)


class RateOutsideItsGroups(Sound):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = 0.1
        return super().step(closure)


class DecaysEverything(Sound):
    def parts(self, group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": weight_decay}]


class MovesEverything(Sound):
    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for parameter in self.trained():
                parameter.sub_(1e-3)
        return super().step(closure)


class CountsOutsideItsState(Sound):
    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        for parameter in self.trained():
            if parameter.grad is not None:
                parameter.grad.div_(self.steps)
        return super().step(closure)


class AddsNoise(Sound):
    def step(self, closure: Any = None) -> Any:
        for parameter in self.trained():
            if parameter.grad is not None:
                parameter.grad.mul_(torch.rand(()))
        return super().step(closure)


class Overflows(Sound):
    """Divides by the smallest number of bfloat16."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.trained():
            if parameter.grad is not None and parameter.dtype == torch.bfloat16:
                parameter.grad.div_(torch.finfo(parameter.dtype).tiny)
        return super().step(closure)


BAD: dict[type[Sound], Contract] = {
    Ascends: descends,
    LeavesOutBiases: trains_every_parameter_once,
    ScalesTheRate: starts_at_the_rate_of_the_recipe,
    ForgetsTheScales: keeps_the_scales_of_groups,
    RateOutsideItsGroups: obeys_the_rate_of_a_schedule,
    DecaysEverything: decays_matrices_alone,
    MovesEverything: parameter_without_gradient_stays,
    CountsOutsideItsState: continues_after_a_resume,
    AddsNoise: global_random_numbers_are_untouched,
    Overflows: works_in_half_precision,
}

SUITE = Suite(CONTRACTS, BAD, (Sound,))
