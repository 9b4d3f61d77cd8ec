"""Helpers of the command modules."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded

Do = Callable[[argparse.Namespace], int | None]


def command(commands: Any, name: str, do: Do, summary: str, description: str = "") -> argparse.ArgumentParser:
    """Add the parser of one command, which calls `do` with its arguments."""
    description = description or f"{summary[0].upper()}{summary[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description)
    parser.set_defaults(do=do)
    return parser


def path(text: str) -> Path:
    """The type of every argument that is a path: with `~` as the home folder."""
    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
