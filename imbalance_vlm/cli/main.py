"""The command line.

Every command is a module with `add(commands)`, which adds its parser. Modules import what a command needs when it runs,
so that `--help` and `ls` answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from imbalance_vlm.cli import bench, cache, components, data, results, run
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import FULL
from imbalance_vlm.progress import note
from imbalance_vlm.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="imbalance-vlm", description="Long-tailed recognition with vision-language models, run from YAML recipes."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for module in (run, components, results, data, cache, bench):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 for success, 1 for findings in data, 2 for bad input, 130 after Ctrl-C.
    """
    options = parse(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    try:
        status = options.do(options) or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        note(f"error: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        note("interrupted; run the same command again to resume")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        sys.stderr.close()
    except OSError as error:
        if error.errno not in FULL:
            raise
        note("error: no space left where the output goes; free some space, or redirect it to another disk")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it exits
        return EXIT_BAD_INPUT
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments; overrides may also follow options, which argparse alone does not allow."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and (unknown or not hasattr(options, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


if __name__ == "__main__":
    raise SystemExit(main())
