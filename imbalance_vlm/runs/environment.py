"""Packages, hardware and cost of a run, which its result records."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("imbalance_vlm", "torch", "torchvision", "timm", "open_clip_torch", "numpy", "pandas", "scikit-learn")


@cache
def _commit() -> str | None:
    """The commit of the checkout that this package is imported from, with "-dirty" when it differs; None elsewhere."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit, changes = _git(here, "rev-parse", "--short=12", "HEAD"), _git(here, "status", "--short", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + "-dirty" * bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    """What a command of git prints that only reads: without optional locks, it does not rewrite the index."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: S603


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Packages, commit and hardware of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
        "system": platform.system(),
        "device": device.type,
        "hardware": name,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def begin_peak_memory(device: torch.device) -> None:
    """Reset the peak, so that a run of a study does not report the peak of an earlier run."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers do not allow this
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since `begin_peak_memory`, in MB (10^6 bytes): of the GPU, or of the whole process on Linux; NaN
    elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 / 1e6 if marks else float("nan")


def cost(
    device: torch.device, trainable: int, encode_seconds: float, train_seconds: float, images_per_second: float
) -> dict[str, Any]:
    """The cost of a run; `encode_seconds` is the time that it waited for features, close to 0 once they are cached."""
    return {
        "trainable_parameters": trainable,
        "encode_seconds": round(encode_seconds, 3),
        "train_seconds": round(train_seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "images_per_second": round(images_per_second, 1),
    }
