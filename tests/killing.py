"""Runs that are killed in a process of their own, or interrupted in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

import imbalance_vlm
from imbalance_vlm.balancing.objective import Objective

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


@contextmanager
def interrupted_before_epoch(number: int) -> Iterator[None]:
    """What trains in here is interrupted before this epoch, counted from 0, begins."""
    on_epoch = Objective.on_epoch

    def stop(self: Objective, epoch: int, epochs: int) -> None:
        if epoch == number:
            raise KeyboardInterrupt
        on_epoch(self, epoch, epochs)

    with mock.patch.object(Objective, "on_epoch", stop), pytest.raises(KeyboardInterrupt):
        yield
