"""Progress bars and notes, on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from imbalance_vlm.escapes import terminal, visible


def bar(total: int, description: str, unit: str = "it", start: int = 0) -> Any:
    """A tqdm bar, shown only on a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=visible(description),
        unit=unit,
        initial=start,
        disable=not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )


def note(message: str) -> None:
    """Print a line about the progress; results go to standard output instead."""
    with suppress(OSError):  # on a full disk or a closed pipe, a note is not worth a run
        print(terminal(message), file=sys.stderr, flush=True)
