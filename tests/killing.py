"""A run in a process of its own, killed at a moment of choice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imbalance_vlm

ENVIRONMENT = {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}


def kill_when(path: Path, ready: Callable[[], bool]) -> None:
    """Start the recipe in its own process and `kill -9` it as soon as `ready()`."""
    command = [sys.executable, "-m", "imbalance_vlm", "run", str(path), "--runs", "killed", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT)
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, f"it ended too early: {process.communicate()[0].decode()}"
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
