"""`imbalance-vlm bench`: the benchmarks, whose arguments are those of their functions."""

from __future__ import annotations

import argparse
import importlib
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from imbalance_vlm.cli.common import command, path
from imbalance_vlm.components.settings import documented_arguments

BENCHMARKS = {
    "features": "a linear probe on cached features, compared with encoding the images again in every epoch",
    "losses": "time and memory of every loss, compared with cross-entropy",
    "probe": "a linear probe at the size of iNaturalist 2018, on random cached features",
    "text": "a step of prompt tuning, the usual way and with each exact saving of the text tower",
    "data": "loading, compute, and both together, in images per second",
    "train": "training an image tower, compared with a plain training loop, in images per second",
}


def add(commands: Any) -> None:
    parser = command(
        commands,
        "bench",
        bench,
        "measure the speed of this machine",
        "Measure the speed of this machine. `imbalance-vlm bench NAME --help` lists the options of a benchmark.",
    )
    listing = "; ".join(f"{name}: {description}" for name, description in BENCHMARKS.items())
    parser.add_argument("name", choices=BENCHMARKS, help=listing)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the benchmark")


def bench(options: argparse.Namespace) -> None:
    module = importlib.import_module(f"imbalance_vlm.benchmarks.{options.name}")
    function: Callable[..., str] = getattr(module, f"bench_{options.name}")
    parser = parser_of(function, f"imbalance-vlm bench {options.name}", BENCHMARKS[options.name])
    print(function(**vars(parser.parse_args(options.options))), end="")


def parser_of(function: Callable[..., Any], prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with one option for each parameter of a function: its type, default and documentation."""
    parser = argparse.ArgumentParser(prog=prog, description=f"{description[0].upper()}{description[1:]}.")
    hints, documentation = get_type_hints(function), documented_arguments(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(option for option in get_args(kind) if option is not type(None))
        several = get_origin(kind) in (Sequence, list, tuple)
        default = "" if parameter.default is None else f" (default {_words(parameter.default)})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=get_args(kind)[0] if several else path if kind is Path else kind,
            nargs="+" if several else None,
            default=parameter.default,
            help=f"{documentation.get(name, '').removesuffix('.')}{default}".replace("%", "%%"),
        )
    return parser


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
