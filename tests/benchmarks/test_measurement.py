"""The peak of memory includes temporary tensors and frees."""

from __future__ import annotations

import pytest
import torch

from imbalance_vlm.benchmarks.measurement import device_name, peak_bytes


def test_peak_memory_counts_temporary_tensors_once_they_are_freed() -> None:
    def step() -> None:
        first = torch.empty(1000, 1000)  # 4 MB, kept to the end
        for _ in range(3):
            torch.empty(2000, 1000)  # 8 MB, freed at once
        del first

    assert peak_bytes(step, torch.device("cpu")) == pytest.approx(12e6, rel=0.01)


def test_the_name_of_a_cpu_is_its_number_of_threads() -> None:
    assert device_name(torch.device("cpu")) == f"{torch.get_num_threads()} CPU threads"
