"""Memory that ran out is reported with the settings to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imbalance_vlm
from imbalance_vlm import InputError
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training.memory import memory_errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("It is possible that dataloader's workers are out of shared memory."),
    ],
)
def test_memory_error_names_the_settings_to_change(error: Exception) -> None:
    words = r"training\.accumulate.*memory_gb.*encoder\.precision.*training\.batch_size"
    with pytest.raises(InputError, match=words), memory_errors():
        raise error


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_errors():
        raise RuntimeError("something else")


def test_run_out_of_memory_leaves_no_result_and_can_be_repeated(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", out_of_memory)
        with pytest.raises(InputError, match=r"memory ran out.*training\.accumulate.*Tried to allocate 2 GiB"):
            imbalance_vlm.run(recipe, device="cpu")
    assert not list(Path("runs").rglob("result.json"))
    assert isinstance(imbalance_vlm.run(recipe, device="cpu"), RunResult)
