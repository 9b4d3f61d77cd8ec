"""A workspace that tests spoil, and what must then happen to a command: one clear error, a count, or nothing at all.

The commands are those of the real command line. None may hang, leave a half-written file or touch the data folder.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from imbalance_vlm.cli.main import main
from tests.data.miniatures import MINIATURES, file_states, write_image

SECONDS = 20
"""After which a command counts as hanging; each takes a fraction of one second."""
RESULT_FILES = ("result.json", ".safetensors", ".csv", ".md", ".tmp", ".png")
"""Ends of the files that a command must not leave when it fails; locks and checkpoints may stay."""


@contextmanager
def time_limit(seconds: int = SECONDS) -> Iterator[None]:
    """Raise TimeoutError in a command that hangs, even in a blocked read; end the process if another thread hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not finished after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@dataclass
class Workspace:
    """A folder with a user's images and a recipe for them.

    Attributes:
        folder: the working folder; holds data/, runs/ and recipe.yaml.
        recipe: the recipe that `run` writes.
        encoder: the name of the tiny model.
        capsys: what commands print.
    """

    folder: Path
    recipe: dict[str, Any]
    encoder: str
    capsys: pytest.CaptureFixture[str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def images(self) -> Path:
        """The folder of the class folders "red apple", "green leaf" and "blue car"."""
        return self.data / "own"

    # -- commands ----------------------------------------------------------------------------------------------------
    def run(self, *overrides: str, **sections: Any) -> list[str]:
        """The command that runs the recipe with these sections in place of its own."""
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(self.recipe | sections, allow_unicode=True), encoding="utf-8")
        return ["run", str(file), *overrides, "--device", "cpu"]

    def run_text(self, text: str, name: str = "broken.yaml") -> list[str]:
        """The command that runs a recipe file with this content."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return ["run", str(path)]

    def predict(self, run: Path, *images: str) -> list[str]:
        """The command that classifies images, by default the workspace's own."""
        return ["predict", str(run), *(images or [str(self.images)])]

    # -- files -------------------------------------------------------------------------------------------------------
    def benchmark(self, name: str) -> tuple[Path, dict[str, Any]]:
        """A miniature of a benchmark: its folder and its `data` section."""
        section = MINIATURES[name](self.data)
        return Path(section["root"]), section

    def finished_run(self) -> Path:
        """The folder of a finished run."""
        assert main(self.run()) == 0
        (result,) = (self.folder / "runs").rglob("result.json")
        return result.parent

    # -- expectations ------------------------------------------------------------------------------------------------
    def assert_refused(self, command: list[str], *words: str) -> None:
        """The command ends with one error message that holds all of these words, and no file."""
        self.capsys.readouterr()
        data, results = file_states(self.data), result_files(self.folder)
        with time_limit():
            code = main(command)
        printed = self.capsys.readouterr()
        assert code == 2, printed.err
        assert printed.out == ""
        assert sum(line.startswith("error: ") for line in printed.err.splitlines()) == 1
        assert "Traceback" not in printed.err
        assert len(printed.err) < 5000, "too long to read"
        assert [word for word in words if word not in printed.err] == [], printed.err
        assert result_files(self.folder) == results, "half-written"
        assert file_states(self.data) == data

    def assert_skipped(self, command: list[str], count: int) -> None:
        """The command works, and its result counts and names this many images that were left out."""
        self.assert_works(command)
        (record,) = [json.loads(path.read_text()) for path in (self.folder / "runs").rglob("result.json")]
        assert record["images"]["skipped"] == len(record["skipped"]) == count

    def assert_works(self, command: list[str]) -> None:
        """The command prints a table of one row."""
        self.capsys.readouterr()
        data = file_states(self.data)
        with time_limit():
            code = main(command)
        printed = self.capsys.readouterr()
        assert code == 0, printed.err
        assert len(printed.out.splitlines()) == 3
        assert file_states(self.data) == data


def make_workspace(folder: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> Workspace:
    for name, count in (("red apple", 6), ("green leaf", 4), ("blue car", 4)):
        for number in range(count):
            write_image(folder / "data" / "own" / name / f"{number}.png", len(name))
    recipe = {
        "name": "broken",
        "data": {"name": "folder", "root": str(folder / "data" / "own")},
        "encoder": {"name": encoder},
        "tuning": "linear_probe",
        "head": "linear",
        "training": {"epochs": 1, "batch_size": 16},
    }
    return Workspace(folder, recipe, encoder, capsys)


def result_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name.endswith(RESULT_FILES)}
