"""Errors that a user can correct, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong input; the message names the argument, what was expected, what was given, and the remedy."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence that suggests the closest of `options`; empty if none is close.

    >>> did_you_mean("focall", ["focal", "cross_entropy"])
    " Did you mean 'focal'?"
    """
    close = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def one_of(options: Iterable[str]) -> str:
    """The options quoted and joined: `'a', 'b' or 'c'`."""
    quoted = [f"'{option}'" for option in options]
    if len(quoted) <= 1:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
