"""The benchmark of the losses has a row for each, and its ratios refer to cross-entropy."""

from __future__ import annotations

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.benchmarks.losses import bench_losses
from imbalance_vlm.components import catalogue


def test_has_a_row_for_every_loss_in_the_order_of_the_registry() -> None:
    lines = bench_losses(batch=16, classes=100, repeats=1).splitlines()
    assert [line.split()[0] for line in lines[2:]] == catalogue.LOSSES.names()
    assert all(float(line.split()[2]) > 0 for line in lines[2:])


def test_cross_entropy_takes_as_much_memory_as_cross_entropy() -> None:
    row = bench_losses(batch=8, classes=50, repeats=1, names=["cross_entropy"]).splitlines()[-1].split()
    assert float(row[4]) == 1.0


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="unknown loss 'focall'"):
        bench_losses(names=["focall"])
    with pytest.raises(InputError, match="`repeats` must be at least 1, got 0"):
        bench_losses(repeats=0)
