"""`bench`: the options of a benchmark are the parameters of its function."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest

from imbalance_vlm.cli import bench
from imbalance_vlm.cli.main import main

Capture = pytest.CaptureFixture[str]


def example(
    count: int = 3, *, sizes: Sequence[int] = (1, 2), rate: float = 0.5, folder: Path | None = None, name: str = "a"
) -> str:
    """An example.

    Args:
        count: how many, 50% of them used.
        sizes: of each.
        rate: per second.
        folder: where they are; none by default.
        name: of them.
    """
    return f"{count} {list(sizes)} {rate} {folder!r} {name}\n"


def test_options_have_the_types_and_defaults_of_the_parameters() -> None:
    parser = bench.parser_of(example, "example", "an example")
    assert example(**vars(parser.parse_args([]))) == example()
    words = ["--count", "4", "--sizes", "5", "6", "--rate", "1", "--folder", "here", "--name", "b"]
    assert vars(parser.parse_args(words)) == {
        "count": 4,
        "sizes": [5, 6],
        "rate": 1.0,
        "folder": Path("here"),
        "name": "b",
    }


def test_help_describes_each_option_with_its_default() -> None:
    text = " ".join(bench.parser_of(example, "example", "an example").format_help().split())
    assert "--count COUNT how many, 50% of them used (default 3)" in text
    assert "--sizes SIZES [SIZES ...] of each (default 1 2)" in text
    assert "--folder FOLDER where they are; none by default" in text


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_has_help_on_all_its_options(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", name, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: imbalance-vlm bench {name} ")
    function = getattr(importlib.import_module(f"imbalance_vlm.benchmarks.{name}"), f"bench_{name}")
    for parameter in inspect.signature(function).parameters:
        option = f"--{parameter.replace('_', '-')}"
        (_, _, description) = output.partition(f"\n  {option} ")
        assert description.split("\n  --")[0].split(maxsplit=1)[1:], f"{option} is not described"


def test_bench_prints_what_the_benchmark_returns(capsys: Capture) -> None:
    arguments = ["--batch", "4", "--classes", "5", "--repeats", "1", "--names", "focal"]
    assert main(["bench", "losses", *arguments]) == 0
    assert "focal" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["losse"], ["losses", "--foo"], ["losses", "--batch", "many"]])
def test_wrong_options_are_exit_code_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    assert "usage: imbalance-vlm bench" in capsys.readouterr().err
