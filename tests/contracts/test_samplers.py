"""What every sampler must do.

A contract takes `make(labels, seed) -> sampler`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from imbalance_vlm.balancing.samplers.base import Sampler, epoch_generator
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from tests.contracts import Contract, Suite, global_random_numbers_untouched, noting, offers, over, section_of, variants

Make = Callable[[Tensor, int], Sampler]

LABELS = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]


def epoch_is_as_long_as_the_training_set(make: Make) -> None:
    """An epoch has (N,) int64 rows of the training set, also for fewer images than a batch or than classes."""
    for size in (1, 2, 3, 5, 49, 50):
        rows = make(LABELS[:size], 0).epoch(0, 3)
        assert rows.dtype == torch.int64, f"rows must be int64, got {rows.dtype}"
        assert rows.shape == (size,), f"an epoch of {size} images must have ({size},) rows, got {tuple(rows.shape)}"
        assert 0 <= int(rows.min()) <= int(rows.max()) < size, f"rows must lie in 0..{size - 1}, got {rows.tolist()}"


def order_is_the_same_after_a_resume(make: Make) -> None:
    """The rows depend on the seed and the epoch, not on the epochs before it."""
    sampler = make(LABELS, 3)
    orders = [sampler.epoch(epoch, 9) for epoch in range(6)]
    resumed = make(LABELS, 3)
    for epoch in (4, 5):
        assert torch.equal(resumed.epoch(epoch, 9), orders[epoch]), f"epoch {epoch} differs after a resume"
    assert torch.equal(sampler.epoch(2, 9), orders[2]), "an epoch asked for again differs"


def global_random_numbers_are_untouched(make: Make) -> None:
    """The rows neither depend on torch's global generator nor move it."""
    torch.manual_seed(1)
    with global_random_numbers_untouched("the sampler"):
        rows = make(LABELS, 3).epoch(5, 9)
    torch.manual_seed(2)
    assert torch.equal(make(LABELS, 3).epoch(5, 9), rows), "the rows depend on torch's global generator"


def seed_and_epoch_change_the_order(make: Make) -> None:
    orders = {(seed, epoch): make(LABELS, seed).epoch(epoch, 3) for seed in range(3) for epoch in range(3)}
    for (a, first), (b, second) in itertools.combinations(orders.items(), 2):
        assert not torch.equal(first, second), f"(seed, epoch) {a} and {b} share an order"


def class_without_images_is_skipped(make: Make) -> None:
    """The labels 0, 3 and 7 of a training set with more classes give the rows of the labels 0, 1 and 2."""
    labels_with_gaps = torch.tensor([0, 3, 7])[LABELS]
    rows = make(labels_with_gaps, 1).epoch(1, 4)
    assert torch.equal(rows, make(LABELS, 1).epoch(1, 4)), "classes without images change the order"


def images_of_a_class_are_drawn_equally_often(make: Make) -> None:
    """Within five standard deviations of the mean of their class, over 400 epochs; every image is drawn."""
    sampler = make(LABELS, 0)
    rows = torch.cat([sampler.epoch(epoch, 400) for epoch in range(400)])
    times = torch.bincount(rows, minlength=len(LABELS)).double()
    for label in range(3):
        of_class = times[label == LABELS]
        mean, spread = float(of_class.mean()), 5 * float(of_class.mean().sqrt())
        assert of_class.min() > mean - spread, f"class {label}: an image was drawn {of_class.min()} times, mean {mean}"
        assert of_class.max() < mean + spread, f"class {label}: an image was drawn {of_class.max()} times, mean {mean}"


def labels_are_left_as_they_are(make: Make) -> None:
    labels = LABELS.clone()
    make(labels, 0).epoch(0, 2)
    assert torch.equal(labels, LABELS), "the sampler changed the labels"


CONTRACTS = (
    epoch_is_as_long_as_the_training_set,
    order_is_the_same_after_a_resume,
    global_random_numbers_are_untouched,
    seed_and_epoch_change_the_order,
    class_without_images_is_skipped,
    images_of_a_class_are_drawn_equally_often,
    labels_are_left_as_they_are,
)


def maker(entry: Entry, settings: Mapping[str, Any]) -> Make:
    return lambda labels, seed: entry.make(section_of(entry, **settings), offers(labels=labels, seed=seed))


@over(catalogue.SAMPLERS, CONTRACTS)
def test_every_sampler_keeps_every_contract(name: str, contract: Contract) -> None:
    entry = catalogue.SAMPLERS.get(name)
    for settings in variants(entry, lambda entry, settings: maker(entry, settings)(LABELS, 0)):
        with noting(settings):
            contract(maker(entry, settings))


# -- samplers that are wrong on purpose ------------------------------------------------------------------------------


class Sound(Sampler):
    """Shuffled passes, which break no contract."""

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return torch.randperm(len(self.labels), generator=epoch_generator(self.seed, epoch))


class FillsTheLastBatch(Sound):
    """Drops what does not fill a batch of 4."""

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return super().epoch(epoch, epochs)[: len(self.labels) // 4 * 4]


class OneGeneratorForAllEpochs(Sound):
    def __init__(self, labels: Tensor, seed: int) -> None:
        super().__init__(labels, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return torch.randperm(len(self.labels), generator=self.generator)


class SeedsTheGlobalGenerator(Sound):
    def epoch(self, epoch: int, epochs: int) -> Tensor:
        torch.manual_seed(100 * self.seed + epoch)
        return torch.randperm(len(self.labels))


class SumOfSeedAndEpoch(Sound):
    """Seed 0 in epoch 1 repeats seed 1 in epoch 0."""

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed + epoch))


class DrawsClassesWithoutImages(Sound):
    """Takes the largest label for the number of classes."""

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        generator = epoch_generator(self.seed, epoch)
        classes = torch.randint(int(self.labels.max()) + 1, (len(self.labels),), generator=generator)
        return classes.argsort()


class FirstImagesOfEachClass(Sound):
    """Draws from the first ten images only."""

    def epoch(self, epoch: int, epochs: int) -> Tensor:
        return super().epoch(epoch, epochs) % 10 % len(self.labels)


class SortsTheLabels(Sound):
    def epoch(self, epoch: int, epochs: int) -> Tensor:
        self.labels.copy_(self.labels.sort().values)
        return super().epoch(epoch, epochs)


BAD: dict[type[Sampler], Contract] = {
    FillsTheLastBatch: epoch_is_as_long_as_the_training_set,
    OneGeneratorForAllEpochs: order_is_the_same_after_a_resume,
    SeedsTheGlobalGenerator: global_random_numbers_are_untouched,
    SumOfSeedAndEpoch: seed_and_epoch_change_the_order,
    DrawsClassesWithoutImages: class_without_images_is_skipped,
    FirstImagesOfEachClass: images_of_a_class_are_drawn_equally_often,
    SortsTheLabels: labels_are_left_as_they_are,
}

SUITE = Suite(CONTRACTS, BAD, (Sound,))
