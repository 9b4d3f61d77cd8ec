"""Checks one value of a recipe against the annotation of the parameter it is for."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from imbalance_vlm.errors import InputError, did_you_mean, one_of
from imbalance_vlm.registry import settings_of
from imbalance_vlm.types import Range

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    Path: "a path",
    type(None): "null",
    Any: "any value",
}


def describe(annotation: Any) -> str:
    """What the annotation accepts, in words a recipe's author understands."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = " ".join(str(extra) for extra in arguments[1:] if isinstance(extra, Range))
        return f"{describe(arguments[0])} {bounds}".strip()
    if origin is Literal:
        return one_of(str(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin in (list, tuple, Sequence):
        return f"a list of [{describe(arguments[0])}]" if arguments else "a list"
    if origin in (dict, Mapping):
        return f"a mapping of {describe(arguments[0])} to {describe(arguments[1])}" if arguments else "a mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def mistake(annotation: Any, value: Any) -> str | None:
    """What is wrong with `value`, or None when it fits `annotation`."""
    if fits(annotation, value):
        return None
    shown = "null" if value is None else repr(value)
    if isinstance(value, str) and _number(value) is not None and fits(annotation, _number(value)):
        shown += ", which is text: leave out the quotes"
    hint = did_you_mean(value, _literals(annotation)) if isinstance(value, str) else ""
    return (
        f"must be {describe(annotation)}, got {shown}.{hint}"
        if hint
        else f"must be {describe(annotation)}, got {shown}"
    )


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def fits(annotation: Any, value: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        bounds = (extra for extra in arguments[1:] if isinstance(extra, Range))
        return fits(arguments[0], value) and all(bound.holds(value) for bound in bounds)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(option, value) for option in arguments)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(arguments[0], item) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            fits(arguments[0], key) and fits(arguments[1], item) for key, item in value.items()
        )
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is Path:
        return isinstance(value, (str, Path)) and bool(str(value))
    if annotation is type(None) or annotation is None:
        return value is None
    return isinstance(value, annotation)


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(option) for option in get_args(annotation)]
    return [option for part in get_args(annotation) for option in _literals(part)]


def checked_settings(what: str, build: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, once all of them are known to `build` and in range.

    Raises:
        InputError: everything that is wrong with them, at once.
    """
    known = settings_of(build)
    wrong = [
        f"unknown setting `{name}`.{did_you_mean(name, known)} Allowed: {', '.join(known) or 'none'}"
        for name in given
        if name not in known
    ]
    wrong += [
        f"`{name}` {said}" for name in given if name in known and (said := mistake(known[name].annotation, given[name]))
    ]
    wrong += [f"`{name}` is missing" for name, setting in known.items() if setting.required and name not in given]
    if wrong:
        raise InputError(f"{what}: {'; '.join(wrong)}")
    return dict(given)
