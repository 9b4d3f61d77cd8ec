"""What every tuning must do. `test_base.py` runs these over the registry, and on tunings that are wrong.

A contract takes `make() -> (a new tuning, what it builds on, a function that makes the recipe's head)`, always on the
same encoder, and raises AssertionError when the tuning breaks it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_vlm import LongTail
from imbalance_vlm.balancing.losses.cross_entropy import CrossEntropy
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.heads.base import Head
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.tuning.base import Tuning, TuningContext

Make = Callable[[], tuple[Tuning, TuningContext, Callable[[], Head]]]


def batch(tuning: Tuning, context: TuningContext) -> tuple[Tensor, Tensor]:
    """What a head of this tuning reads of eight images, and their classes."""
    pixels = torch.randn(8, 3, *context.encoder.preprocessing.size, generator=torch.Generator().manual_seed(5))
    return pixels if tuning.reads_pixels else encoded(context, pixels), torch.arange(8) % len(context.class_names)


@torch.no_grad()
def encoded(context: TuningContext, pixels: Tensor) -> Tensor:
    return context.encoder.image_features(pixels, context.kind)


@torch.no_grad()
def logits_of(tuning: Tuning, context: TuningContext, head: Head) -> Tensor:
    logits: Tensor = head.eval()(batch(tuning, context)[0])
    return logits


def make_head(make: Make, seed: int = 3) -> tuple[Tuning, TuningContext, Head]:
    tuning, context, plain = make()
    torch.manual_seed(seed)
    return tuning, context, tuning.head(context, plain)


def train(tuning: Tuning, context: TuningContext, head: Head) -> None:
    """An epoch of three steps, as a run takes them."""
    if not tuning.trains:
        return
    text = context.text_features(context.class_names, context.templates) if head.learns_text else None
    loss = CrossEntropy(LongTail([9, 4, 1, 1][: len(context.class_names)]))
    objective = Objective(head, loss, tuning.regularizers(context), tuning.gradient(context), text)
    objective.gradient.start(dict(head.named_parameters()))
    optimizer = sgd(tuning.groups(head), lr=0.05, weight_decay=0.1)
    objective.train()
    for _ in range(3):
        optimizer.zero_grad()
        objective.backward(objective(*batch(tuning, context)))
        optimizer.step()
        objective.gradient.after_step()
    tuning.after_epoch(head, 1)
    tuning.finish(head)


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything that a tuning may change on an encoder."""
    values = {name: value.detach().clone() for name, value in module.state_dict().items()}
    flags = {f"{name} requires a gradient": value.requires_grad for name, value in module.named_parameters()}
    modes = {f"training mode of {name}": part.training for name, part in module.named_modules()}
    hooks = {f"hooks of {name}": _hooks(part) for name, part in module.named_modules()}
    return values | flags | modes | hooks


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def differs(name: str) -> bool:
        pair = [torch.as_tensor(state[name]) for state in (before, after)]
        return not torch.equal(*pair)

    return [name for name in before.keys() | after.keys() if not (name in before and name in after) or differs(name)]


def making_encodes_no_images(make: Make) -> None:
    tuning, context, plain = make()
    context.encoder.width(context.kind)  # asks the model once
    error = AssertionError("an image was encoded")
    try:
        with mock.patch.object(type(context.encoder), "image_features", side_effect=error):
            tuning.transforms(context)
            tuning.head(context, plain)
    finally:
        tuning.close()


def closing_restores_the_encoder(make: Make) -> None:
    module = make()[1].encoder.module
    for trainable in (True, False):
        module.requires_grad_(trainable)
        before = state_of(module)
        tuning, context, head = make_head(make)
        train(tuning, context, head)
        tuning.close()
        changed = differences(before, state_of(module))
        assert not changed, f"left on the encoder: {changed[:5]}"


def closing_is_always_possible(make: Make) -> None:
    unused, tuning = make()[0], make_head(make)[0]
    try:
        unused.close()
        tuning.close()
        tuning.close()
    except Exception as error:
        raise AssertionError(f"close before head, or a second time: {error!r}") from error


def trains_its_parameters_and_nothing_else(make: Make) -> None:
    tuning, context, head = make_head(make, seed=5)  # with this seed no unit of a tiny network is dead
    try:
        trained = {id(value) for value in tuning.parameters(head)}
        assert bool(trained) == tuning.trains
        grouped = [id(value) for group in tuning.groups(head) for value in group["params"]]
        assert len(grouped) == len(set(grouped)), "a parameter in two groups"
        assert set(grouped) == trained, "the groups hold other parameters"
        if tuning.trains:
            wanted = {id(value) for value in head.parameters() if value.requires_grad}
            assert trained == wanted, "not the parameters of the head that require a gradient"
        values = [*head.parameters(), *context.encoder.module.parameters(), *context.encoder.module.buffers()]
        before = {id(value): value.detach().clone() for value in values}
        train(tuning, context, head)
        for value in values:
            is_trained, changed = id(value) in trained, not torch.equal(value, before[id(value)])
            assert changed == is_trained, f"{tuple(value.shape)}: trained {is_trained}, changed {changed}"
    finally:
        tuning.close()


def saved_state_gives_the_same_logits(make: Make) -> None:
    tuning, context, head = make_head(make)
    train(tuning, context, head)
    wanted = logits_of(tuning, context, head)
    state = {name: value.detach().clone() for name, value in head.state_dict().items()}
    tuning.close()
    again, context, other = make_head(make, seed=99)
    try:
        other.load_state_dict(state)
        torch.testing.assert_close(logits_of(again, context, other), wanted, msg="other logits from the saved state")
    finally:
        again.close()


def base_is_the_untouched_encoder(make: Make) -> None:
    tuning, context, plain = make()
    pixels = torch.randn(2, 3, *context.encoder.preprocessing.size)
    wanted = encoded(context, pixels)

    def check(when: str) -> None:
        with tuning.base():
            assert torch.equal(encoded(context, pixels), wanted), f"another encoder in base() {when}"

    try:
        check("before the head")
        head = tuning.head(context, plain)
        check("after the head")
        train(tuning, context, head)
        check("after the training")
    finally:
        tuning.close()
    check("after close")


def the_seed_decides_the_start(make: Make) -> None:
    states = []
    for _ in range(2):
        tuning, _, head = make_head(make)
        states.append({name: value.detach().clone() for name, value in head.state_dict().items()})
        tuning.close()
    assert not differences(*states), "another start from the same seed"


def views_are_functions_of_the_image(make: Make) -> None:
    tuning, context, _ = make()
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    first, second = tuning.transforms(context), tuning.transforms(context)
    assert first, "no view of the training images"
    keys = [view.key() for view in first]
    assert keys == [view.key() for view in second], "another key of the same view"
    assert len(set(keys)) == len(keys), "two views of one key"
    for view, again in zip(first, second, strict=True):
        assert view(image).shape == (3, *context.encoder.preprocessing.size)
        assert torch.equal(view(image), again(image)), "another result from the same image"


def copies_are_independent(make: Make) -> None:
    tuning, context, head = make_head(make)
    try:
        before = logits_of(tuning, context, head)
        twin = copy.deepcopy(head)
        assert torch.equal(logits_of(tuning, context, twin), before), "a copy has other logits"
        train(tuning, context, head)
        assert torch.equal(logits_of(tuning, context, twin), before), "training changed a copy"
    finally:
        tuning.close()


CONTRACTS = (
    making_encodes_no_images,
    closing_restores_the_encoder,
    closing_is_always_possible,
    trains_its_parameters_and_nothing_else,
    saved_state_gives_the_same_logits,
    base_is_the_untouched_encoder,
    the_seed_decides_the_start,
    views_are_functions_of_the_image,
    copies_are_independent,
)
