"""When a process of a run, or its launcher, is killed, the others end with the reason, and the run can be resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import imbalance_vlm
from imbalance_vlm.results.result import RunResult
from tests.killing import ENVIRONMENT
from tests.test_workers import alive, children, wait_until

RUN = ["-m", "imbalance_vlm", "run", "recipe.yaml", "--device", "cpu"]
SECONDS = 20
"""Until all processes have ended: a few, on a machine that is not busy."""


@pytest.fixture
def long_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    recipe["training"] |= {"epochs": 200, "checkpoint_seconds": 0.05}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return recipe


def has_begun(folder: str = "runs") -> bool:
    """Whether some epochs are in a checkpoint."""
    return any(path.read_text().count("\n") >= 3 for path in Path(folder).rglob("metrics.jsonl"))


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def started(*commands: tuple[list[str], dict[str, str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Programs with their environments; all that is left of them is killed at the end."""
    shared = os.environ | ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"}
    programs = [
        subprocess.Popen(command, env=shared | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command, own in commands
    ]
    try:
        yield programs
    finally:
        for program in programs:
            for process in alive(children(program.pid)):
                os.kill(process, signal.SIGKILL)
            program.kill()
            program.communicate()


def wait_for(programs: list[subprocess.Popen[str]], ready: Callable[[], bool]) -> None:
    def is_ready() -> bool:
        for program in programs:
            assert program.poll() is None, f"it ended too early: {program.communicate()[0]}"
        return ready()

    wait_until(is_ready, 90)


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_process_of_two_is_killed(killed: int, long_recipe: dict[str, Any]) -> None:
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    with started(*(([sys.executable, *RUN], place | rank) for rank in ranks)) as programs:
        wait_for(programs, has_begun)
        programs[killed].kill()
        other = programs[1 - killed]
        output, _ = other.communicate(timeout=SECONDS)
        assert other.returncode == 2
        assert "Traceback" not in output
        assert f"error: another process of this run has ended, or cannot be reached from process {1 - killed}" in output
    assert not list(Path("runs").rglob("result.json"))

    resumed = imbalance_vlm.run(long_recipe, device="cpu")
    undisturbed = imbalance_vlm.run(long_recipe, runs="undisturbed", device="cpu")
    assert isinstance(resumed, RunResult)
    assert isinstance(undisturbed, RunResult)
    histories = [(result.path / "metrics.jsonl").read_text().splitlines() for result in (resumed, undisturbed)]
    losses = [[json.loads(line)["loss"] for line in history] for history in histories]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert resumed.scores["nll"] == pytest.approx(undisturbed.scores["nll"], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_launcher_is_ended(number: signal.Signals, long_recipe: dict[str, Any]) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    with started(([*launch, *RUN], {})) as (launcher,):
        wait_for([launcher], has_begun)
        processes = children(launcher.pid)
        assert len(processes) >= 2
        launcher.send_signal(number)
        start = time.monotonic()
        wait_until(lambda: not alive(processes), SECONDS)
        output, _ = launcher.communicate(timeout=SECONDS)
        assert time.monotonic() - start < SECONDS
        assert number == signal.SIGKILL or "got signal: 15" in output
    assert list(Path("runs").rglob("checkpoint.pt"))
    assert not list(Path("runs").rglob("result.json"))
