"""Datasets as their lists and folders name them, for tools that look at the images by themselves.

A reader refuses a dataset that lacks images, or that holds images nobody can decode: right for training, and in the
way of whoever wants to know all that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Listing:
    """How readers behave at the moment.

    Args:
        whole: leave a set without a test part whole, in "train", instead of drawing one; "test" is then the same
            images again.
        drawn: whether a reader has met such a set.
    """

    whole: bool
    drawn: bool = False


_now: ContextVar[Listing | None] = ContextVar("_now", default=None)


@contextmanager
def as_listed(whole: bool = False) -> Iterator[Listing]:
    """While this lasts, readers take lists and folders at their word: no image is looked for or opened."""
    listing = Listing(whole)
    token = _now.set(listing)
    try:
        yield listing
    finally:
        _now.reset(token)


def listing() -> Listing | None:
    """How readers behave at the moment; None for as usual."""
    return _now.get()
