"""Errors that a user can act on, and the suggestion they carry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong: the message names it, what was expected, what came, and the remedy."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A clause that suggests the closest of `options`, or nothing when none is close.

    >>> did_you_mean("focall", ["focal", "cross_entropy"])
    " Did you mean 'focal'?"
    """
    close = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def one_of(options: Iterable[str]) -> str:
    """`'a', 'b' or 'c'`, for messages."""
    quoted = [f"'{option}'" for option in options]
    if len(quoted) <= 1:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
