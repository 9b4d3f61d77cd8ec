"""Progress bars: on a terminal, for anything over a moment, and silent everywhere else."""

from __future__ import annotations

import sys
from typing import Any


def bar(total: int, what: str, unit: str = "it", start: int = 0) -> Any:
    """A tqdm bar on standard error, which shows itself only on a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=start,
        disable=not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )


def note(message: str) -> None:
    """A line for a person who is watching; results go to standard output, notes to standard error."""
    print(message, file=sys.stderr, flush=True)
