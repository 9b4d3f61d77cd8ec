"""The command line as a whole: how fast it answers, and what it says to bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import imbalance_vlm
from imbalance_vlm.cli.main import main

Capture = pytest.CaptureFixture[str]


def command(*arguments: str, prefix: tuple[str, ...] = ("-m", "imbalance_vlm")) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    return subprocess.run([sys.executable, *prefix, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["ls", "losses"], ["run", "--help"], ["--version"]])
def test_help_and_ls_answer_in_under_a_second_without_torch(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom imbalance_vlm.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "slow = {'torch', 'open_clip', 'timm', 'pandas', 'sklearn', 'torchvision', 'PIL', 'scipy'}\n"
        "imported = slow & set(sys.modules)\n"
        "assert not imported, imported\n"
    )
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        completed = command(*arguments, prefix=("-c", program))
        seconds.append(time.monotonic() - start)
        assert completed.returncode == 0, completed.stderr
        if seconds[-1] < 1:
            return
    pytest.fail(f"took {seconds} s")


@pytest.mark.parametrize(
    "name",
    ["run", "ls", "show", "validate", "schema", "table", "predict", "data verify", "data show", "data scenes", "cache"],
)
def test_every_command_has_help(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: imbalance-vlm {name} ")


def test_a_full_disk_behind_the_output_is_one_error() -> None:
    with open("/dev/full", "w") as full:
        program = [sys.executable, "-m", "imbalance_vlm", "ls"]
        environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
        completed = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
        assert completed.returncode == 2
        assert completed.stderr.startswith("error: no space left")
        assert len(completed.stderr.splitlines()) == 1
        program = [sys.executable, "-m", "imbalance_vlm", "validate", "nowhere"]
        assert subprocess.run(program, stderr=full, env=environment).returncode == 2


def test_an_error_shows_no_terminal_codes(capsys: Capture) -> None:
    assert main(["show", "\x1b[2J\udcff", "a=1"]) == 2
    assert main(["validate", "\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_overrides_may_stand_after_options(recipe_file: str) -> None:
    assert main(["run", recipe_file, "training.epochs=1", "--runs", "out", "seed=5"]) == 0
    (record,) = [json.loads(path.read_text()) for path in Path("out").rglob("result.json")]
    assert record["seed"] == 5
    with pytest.raises(SystemExit):
        main(["run", recipe_file, "--runs", "out", "--unknown"])


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "imbalance_vlm", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


# -- bad input -------------------------------------------------------------------------------------------------------
BAD: dict[str, tuple[list[str], list[str]]] = {
    "wrong type": (["run", "RECIPE", "training.epochs=ten"], ["training.epochs: must be a whole number >= 1"]),
    "two problems": (["run", "RECIPE", "hed=x", "seed=-1"], ["2 problems", "hed: unknown key", "seed: must be"]),
    "moved key": (["run", "RECIPE", "evaluation.curve=1"], ["It is now `evaluation.base_to_novel.curve`"]),
    "unknown recipe": (["run", "quikstart"], ["neither"]),
    "no folder": (["run", "RECIPE", "data.root=nowhere"], ["no such folder"]),
    "no images": (["run", "RECIPE", "data.root=."], ["must hold class folders with images"]),
    "unknown encoder": (["run", "RECIPE", "encoder=ViT-B-61"], ["unknown encoder 'ViT-B-61'"]),
    "unknown device": (["run", "RECIPE", "--device", "gpu"], ["`device` must be auto"]),
    "no jobs": (["run", "RECIPE", "--jobs", "0"], ["`jobs` must be at least 1, got 0"]),
    "unknown kind": (["ls", "loses"], ["unknown kind 'loses'", "Did you mean 'losses'?"]),
    "unknown component": (["show", "focall"], ["is not a component", "Did you mean 'focal'?"]),
    "overrides of a component": (["show", "focal", "gamma=1"], ["'focal' is a component", "overrides are for recipes"]),
    "parquet to the screen": (["table", "one", "--format", "parquet"], ["write it with --out FILE.parquet"]),
    "no results": (["table"], ["no such run or folder: runs"]),
    "unknown column": (["table", "one", "--columns", "overal"], ["unknown table column 'overal'", "'overall'"]),
    "unknown format": (["table", "one", "--format", "html"], ["`format` must be"]),
    "unknown suffix": (["table", "one", "--out", "t.html"], ["`format` must be"]),
    "unfinished run": (["predict", "nowhere", "image.png"], ["`run` must be the folder of a finished run"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_and_exit_code_2(name: str, recipe_file: str, capsys: Capture) -> None:
    arguments, words = BAD[name]
    arguments = [recipe_file if argument == "RECIPE" else argument for argument in arguments]
    if "one" in arguments:
        assert main(["run", recipe_file, "--runs", "one"]) == 0
        capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    assert all(word in captured.err for word in words), captured.err
    assert not list(Path("runs").rglob("result.json"))


def test_bad_input_of_the_installed_command(recipe_file: str) -> None:
    completed = command("run", recipe_file, "heads=linear", "training.epochs=0")
    assert completed.returncode == 2
    assert "error: 2 problems in the recipe" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert completed.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [[], ["rum"], ["cache", "burn"], ["cache", "prune", "--max-gb", "lots"], ["bench"], ["ls", "losses", "more"]],
    ids=" ".join,
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(recipe_file: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imbalance_vlm.runs.study.run", interrupt)
    assert main(["run", recipe_file]) == 130
    assert "run the same command again" in capsys.readouterr().err
