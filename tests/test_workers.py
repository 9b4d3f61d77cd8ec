"""Worker processes end with the process that started them, however it ends. This file is also the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml

from imbalance_vlm.workers import end_with_parent
from tests.killing import ENVIRONMENT

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes as Linux does")
SIGNALS = [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]


def children(process: int) -> set[int]:
    """The processes that a process has started, and those that they have started."""
    direct = {
        int(child) for task in Path(f"/proc/{process}/task").glob("*/children") for child in task.read_text().split()
    }
    return direct.union(*map(children, direct))


def alive(processes: set[int]) -> set[int]:
    return {process for process in processes if state(process) not in ("Z", "")}


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def assert_workers_end(command: list[str], number: signal.Signals, ready: Callable[[set[int]], bool]) -> None:
    """Start a program, end it with a signal once it is ready, and see that no process is left of it."""
    program = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=subprocess.DEVNULL)
    workers: set[int] = set()
    try:
        wait_until(lambda: ready(children(program.pid)), 90)
        workers = children(program.pid)
        program.send_signal(number)
        program.wait()
        wait_until(lambda: not alive(workers), 3)
    finally:
        program.kill()
        program.wait()
        for worker in alive(workers):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", ["pool", "loader"])
def test_workers_end_with_their_parent(kind: str, number: signal.Signals, tmp_path: Path) -> None:
    def ready(workers: set[int]) -> bool:
        return len(list(tmp_path.glob("*.started"))) == 2

    assert_workers_end([sys.executable, __file__, kind, str(tmp_path)], number, ready)


def test_the_processes_of_a_study_end_with_it(recipe: dict[str, object], tmp_path: Path) -> None:
    recipe |= {"training": {"epochs": 100_000, "checkpoint_seconds": 0}, "grid": {"seeds": [0, 1]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "imbalance_vlm", "run", "study.yaml", "--jobs", "2", "--device", "cpu"]
    assert_workers_end(command, signal.SIGTERM, lambda _: len(list(Path("runs").rglob("metrics.jsonl"))) == 2)


# -- the program -------------------------------------------------------------------------------------------------------
def work(folder: Path) -> None:
    (folder / f"{os.getpid()}.started").touch()
    time.sleep(60)


class Sleeping:
    """A view that takes a minute per image."""

    size = (1, 1)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self) -> str:
        return "sleeping"

    def __call__(self, image: object) -> None:
        work(self.folder)


def use_pool(folder: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn"), end_with_parent) as pool:
        list(pool.map(work, [folder] * 2))


def use_loader(folder: Path) -> None:
    from PIL import Image

    from imbalance_vlm.data.dataset import FileImages
    from imbalance_vlm.data.loader import PixelLoader

    names = ("0.png", "1.png", "2.png")
    for name in names:
        Image.new("RGB", (1, 1)).save(folder / name)
    loader = PixelLoader(FileImages(folder, names), [Sleeping(folder)], workers=2)  # type: ignore[list-item]
    list(loader.batches([[0], [1], [2]]))


if __name__ == "__main__":
    {"pool": use_pool, "loader": use_loader}[sys.argv[1]](Path(sys.argv[2]))
