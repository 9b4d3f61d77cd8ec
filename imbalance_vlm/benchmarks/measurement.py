"""What the benchmarks share: the name of a device, waiting for it, and the peak of its memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from imbalance_vlm.errors import InputError


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the number of CPU threads that torch uses."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work, so that a clock read afterwards includes it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that torch has allocated at one moment of `step`.

    On a GPU this includes what was allocated before; on the CPU it counts the allocations of `step` alone.
    """
    if device.type != "cuda":
        return peak_bytes_on_cpu(step)
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def peak_bytes_on_cpu(step: Callable[[], Any]) -> int:
    """The highest running sum of what torch's CPU allocator allocates and frees during `step`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's own messages
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    highest = current = 0
    for _, change in changes:
        current += change
        highest = max(highest, current)
    return highest


def check_at_least_one(**numbers: int) -> None:
    """Check that every number is at least 1.

    Raises:
        InputError: the first one that is not.
    """
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"`{name}` must be at least 1, got {number}")
