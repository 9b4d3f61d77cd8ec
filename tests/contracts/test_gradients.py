"""What every gradient transform must do.

A contract takes `make() -> transform`; `started` brings it to its first step as the training loop does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.gradients.base import Gradient, PlainGradient
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.long_tail import LongTail
from tests.contracts import (
    Contract,
    Suite,
    close,
    global_random_numbers_untouched,
    noting,
    offers,
    over,
    section_of,
    variants,
)

Make = Callable[[], Gradient]
Trained = dict[str, nn.Parameter]

CLASSES, WIDTH, IMAGES = 4, 6, 12
SCALE = 10.0


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> Trained:
    """Text features and an offset of them, which a run learns."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"text": (CLASSES, WIDTH), "offset": (WIDTH,)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in shapes.items()
    }


def started(transform: Gradient, trained: Trained) -> Gradient:
    """The transform after its first pass, if it has one, and `start`."""
    if transform.first_epochs:
        transform.learn(
            [{key: p.detach().clone() for key, p in parameters(50 + k).items()} for k in range(transform.first_epochs)]
        )
    transform.start(trained)
    return transform


def forward(trained: Trained, rows: Tensor | None = None) -> tuple[Tensor, StepOutputs]:
    """Loss and outputs of a step on the images `rows`."""
    generator = torch.Generator().manual_seed(3)
    dtype = trained["text"].dtype
    images = F.normalize(torch.randn(IMAGES, WIDTH, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    frozen = F.normalize(torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    targets = torch.randint(CLASSES, (IMAGES,), generator=generator)
    if rows is not None:
        images, targets = images[rows], targets[rows]
    text = F.normalize(trained["text"] + trained["offset"], dim=-1)
    logits = SCALE * images @ text.t()
    return F.cross_entropy(logits, targets), StepOutputs(images, targets, logits, text, frozen)


def gradients(transform: Gradient, trained: Trained, rows: Tensor | None = None) -> dict[str, Tensor]:
    """What the optimizer reads after a backward pass through the transform."""
    for parameter in trained.values():
        parameter.grad = None
    transform.backward(*forward(trained, rows))
    missing = [name for name, parameter in trained.items() if parameter.grad is None]
    assert not missing, f"no gradient is stored for {', '.join(missing)}"
    return {name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def stores_a_finite_gradient_per_parameter(make: Make) -> None:
    """Of the parameter's shape and dtype, for batches of any size, in float64, float32 and bfloat16."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        trained = parameters(dtype=dtype)
        transform = started(make(), trained)
        for size in (IMAGES, 1):
            for name, gradient in gradients(transform, trained, torch.arange(size)).items():
                parameter = trained[name]
                assert gradient.shape == parameter.shape, f"the gradient of {name} has shape {tuple(gradient.shape)}"
                assert gradient.dtype == dtype, f"the gradient of {name} in {dtype} is {gradient.dtype}"
                assert torch.isfinite(gradient).all(), f"the gradient of {name} is not finite for {size} images"


def never_ascends(make: Make) -> None:
    """The transformed gradient has no negative product with the gradient of the loss: small steps do not raise it."""
    for seed in range(5):
        trained = parameters(seed)
        transform = started(make(), trained)
        changed, plain = flat(gradients(transform, trained)), flat(gradients(PlainGradient(), trained))
        assert float(changed @ plain) > -1e-12, "a step along the transformed gradient raises the loss"


def order_of_the_batch_does_not_matter(make: Make) -> None:
    trained = parameters()
    transform = started(make(), trained)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    wanted = flat(gradients(transform, trained))
    assert close(flat(gradients(transform, trained, order)), wanted, 1e-9), "the order of the batch matters"


def linear_transforms_add_up(make: Make) -> None:
    """With `is_linear`, the mean over the halves of a batch is the gradient of the batch: it may be split."""
    trained = parameters()
    transform = started(make(), trained)
    if transform.is_linear:
        halves = [flat(gradients(transform, trained, rows)) for rows in torch.arange(IMAGES).chunk(2)]
        of_batch = flat(gradients(transform, trained))
        assert close((halves[0] + halves[1]) / 2, of_batch, 1e-9), "the gradient of a split batch is another one"


def continues_after_a_resume(make: Make) -> None:
    """A resumed run starts a new transform at the parameters' start, and then loads their values and its state."""
    trained = parameters()
    transform = started(make(), trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        gradients(transform, trained)
        optimizer.step()
        transform.after_step()
    resumed_at = parameters()
    resumed = started(make(), resumed_at)
    resumed.load_state_dict(transform.state_dict())
    with torch.no_grad():
        for name, parameter in resumed_at.items():
            parameter.copy_(trained[name])
    got, wanted = flat(gradients(resumed, resumed_at)), flat(gradients(transform, trained))
    assert torch.equal(got, wanted), "the gradient after a resume differs"


def after_step_moves_nothing_by_itself(make: Make) -> None:
    """`after_step` leaves parameters that have not moved from their start where they are."""
    trained, wanted = parameters(), flat(parameters())
    started(make(), trained).after_step()
    assert close(flat(trained), wanted, 1e-12), "`after_step` moves parameters that the optimizer left at their start"


def global_random_numbers_are_untouched(make: Make) -> None:
    trained = parameters()
    transform = started(make(), trained)
    torch.manual_seed(1)
    with global_random_numbers_untouched("the transform"):
        wanted = flat(gradients(transform, trained))
        transform.after_step()
    torch.manual_seed(2)
    trained = parameters()
    again = flat(gradients(started(make(), trained), trained))
    assert torch.equal(again, wanted), "the gradient depends on torch's global generator"


def graph_is_freed(make: Make) -> None:
    """After the backward pass nothing of the step is kept: a second graph in memory would double it."""
    trained = parameters()
    transform = started(make(), trained)
    loss, outputs = forward(trained)
    transform.backward(loss, outputs)
    try:
        loss.backward()
    except RuntimeError:
        return
    raise AssertionError("the graph of the step is still there after the backward pass")


def outputs_are_left_as_they_are(make: Make) -> None:
    """Neither the outputs of the step nor the frozen text features are changed."""
    trained = parameters()
    transform = started(make(), trained)
    loss, outputs = forward(trained)
    before = [tensor.detach().clone() for tensor in vars(outputs).values()]
    transform.backward(loss, outputs)
    transform.after_step()
    assert all(torch.equal(a, b) for a, b in zip(before, vars(outputs).values(), strict=True)), "outputs are changed"


CONTRACTS = (
    stores_a_finite_gradient_per_parameter,
    never_ascends,
    order_of_the_batch_does_not_matter,
    linear_transforms_add_up,
    continues_after_a_resume,
    after_step_moves_nothing_by_itself,
    global_random_numbers_are_untouched,
    graph_is_freed,
    outputs_are_left_as_they_are,
)

HEAD = TextHead(torch.eye(CLASSES, WIDTH), SCALE)


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    """The transform as a run makes it."""
    run = offers(
        logit_scale=SCALE,
        head=HEAD,
        num_classes=CLASSES,
        long_tail=LongTail([40, 20, 9, 2]),
        prototypes=None,
        text=None,
    )
    return lambda: entry.make(section_of(entry, **settings), run)


@over(catalogue.GRADIENTS, CONTRACTS)
def test_every_transform_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.GRADIENTS.get(name)
    for settings in variants(entry, lambda entry, settings: started(maker(entry, settings)(), parameters())):
        with noting(settings):
            contract(maker(entry, settings))


# -- transforms that are wrong on purpose ----------------------------------------------------------------------------


class Sound(Gradient):
    """The plain gradient, halved: a linear transform, which breaks no contract."""

    is_linear = True  # type: ignore[assignment]

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.trained = dict(parameters)

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        (loss / 2).backward()


class DividesByTheLength(Sound):
    """Not a number for a batch of one image."""

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        super().backward(loss, outputs)
        for parameter in self.trained.values():
            if parameter.grad is not None:
                parameter.grad = parameter.grad / (parameter.grad.norm() * (len(outputs.targets) - 1))


class Ascends(Sound):
    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        (-loss).backward()


class FavoursTheFirstImage(Sound):
    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        (loss - outputs.logits[0, outputs.targets[0]]).backward()


class SignOfTheGradient(Sound):
    """Not linear, and says it is."""

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        super().backward(loss, outputs)
        for parameter in self.trained.values():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.sign()


class MomentumOutsideItsState(Sound):
    last = 0.0

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        (loss * (1 + self.last)).backward()
        self.last += 1.0


class PullsToZero(Sound):
    def after_step(self) -> None:
        with torch.no_grad():
            for parameter in self.trained.values():
                parameter.mul_(0.9)


class AddsNoise(Sound):
    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        (loss * (1 + torch.rand(()))).backward()


class KeepsTheGraph(Sound):
    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        (loss / 2).backward(retain_graph=True)


class ShrinksTheFrozenText(Sound):
    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        super().backward(loss, outputs)
        if outputs.frozen_text is not None:
            outputs.frozen_text.mul_(0.9)


BAD: dict[type[Sound], Contract] = {
    DividesByTheLength: stores_a_finite_gradient_per_parameter,
    Ascends: never_ascends,
    FavoursTheFirstImage: order_of_the_batch_does_not_matter,
    SignOfTheGradient: linear_transforms_add_up,
    MomentumOutsideItsState: continues_after_a_resume,
    PullsToZero: after_step_moves_nothing_by_itself,
    AddsNoise: global_random_numbers_are_untouched,
    KeepsTheGraph: graph_is_freed,
    ShrinksTheFrozenText: outputs_are_left_as_they_are,
}

SUITE = Suite(CONTRACTS, BAD, (PlainGradient, Sound))
