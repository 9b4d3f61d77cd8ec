"""Values and the types that they must have: of settings in recipes, of JSON files, of the arguments of functions."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from imbalance_vlm.errors import did_you_mean

LARGEST = (2 - 2**-23) * 2.0**127
"""The largest number in single precision, in which models are trained; so far may a setting go."""
LARGEST_WHOLE = 2**63 - 1
MOST_SHOWN = 200
"""Characters of a value in a message."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` and `below` are strict, `at_least` and `at_most` are not."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        bounds = {">": self.above, ">=": self.at_least, "<": self.below, "<=": self.at_most}
        words = {sign: f"{bound:g}" if isinstance(bound, float) else str(bound) for sign, bound in bounds.items()}
        return " and ".join(f"{sign} {word}" for sign, word in words.items() if bounds[sign] is not None)


_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
    Any: ("any value", "any values"),
}
"""The types of settings in words, singular and plural."""


def describe(annotation: Any, plural: bool = False) -> str:
    """What the annotation accepts, in words for the author of a recipe.

    >>> describe(list[int] | None), describe(Literal["a", "b"] | None), describe(dict[str, float | None])
    ('a list of whole numbers, or null', "'a', 'b' or null", 'a mapping of names to numbers or null')
    """
    *options, last = _options(annotation, plural)
    if not options:
        return last
    comma = "," if any(word in option for option in options for word in (" or ", " and ", " of ")) else ""
    return f"{', '.join(options)}{comma} or {last}"


def _options(annotation: Any, plural: bool) -> list[str]:
    """The alternatives that the annotation accepts, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = " ".join(str(extra) for extra in arguments[1:] if isinstance(extra, Range))
        return [f"{describe(arguments[0], plural)} {bounds}"] if bounds else _options(arguments[0], plural)
    if origin is Literal:
        return [f"'{option}'" for option in arguments]
    if origin in (Union, types.UnionType):
        return [words for option in arguments for words in _options(option, plural)]
    if annotation is bool:
        return ["true", "false"]
    if origin is tuple and ... not in arguments:
        return [f"[{', '.join(map(describe, arguments))}]"]
    if origin in (list, tuple, Sequence):
        items = "" if arguments[0] is Any else f" of {describe(arguments[0], plural=True)}"
        return [("lists" if plural else "a list") + items]
    if origin in (dict, Mapping):
        keys = "names" if arguments[0] is str else describe(arguments[0], plural=True)
        items = "" if arguments[1] is Any else f" of {keys} to {describe(arguments[1], plural=True)}"
        return [("mappings" if plural else "a mapping") + items]
    name = getattr(annotation, "__name__", str(annotation))
    return [_WORDS.get(annotation, (name, name))[plural]]


def mistake(annotation: Any, value: Any) -> str | None:
    """What is wrong with `value`, or None if it fits `annotation`."""
    if fits(annotation, value):
        return None
    got = written(value)
    if isinstance(value, str) and _number(value) is not None and fits(annotation, _number(value)):
        got += ", which is a string: leave out the quotes"
    elif isinstance(value, (int, float)) and LARGEST_WHOLE < abs(value) < math.inf:
        got += ", which is too large a number"
    elif _is_path(annotation) and isinstance(value, str) and value:
        got += f", {path_problem(value)}"
    hint = did_you_mean(value, _literals(annotation)) if isinstance(value, str) else ""
    return f"must be {describe(annotation)}, got {got}{'.' if hint else ''}{hint}"


def written(value: Any) -> str:
    """A value as a recipe writes it, with quotes around strings, shortened to what a message can hold.

    >>> written({"a": None, "b": [True, "x"]}), written("a" * 300)[-10:]
    ("{a: null, b: [true, 'x']}", 'aaaaaaa...')
    """
    try:
        text = _written(value)
    except (ValueError, RecursionError):  # thousands of digits, or a value that contains itself
        return "a value that is too large to show"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    return repr(str(value) if isinstance(value, Path) else value)


def path_problem(path: str) -> str:
    """Why no file or folder can have this path, or ""."""
    try:
        if "\0" in path or (len(os.fsencode(path)) > 255 and _is_long(path)):
            return "which is too long (at most 255 bytes between slashes, 4000 in all) or holds a NUL character"
        Path(path).expanduser()
    except UnicodeEncodeError:
        return "which holds characters that no file name can have"
    except RuntimeError:
        return f"and there is no user {path.split('/')[0]}: write the home folder out"
    return ""


def _is_long(path: str) -> bool:
    return len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.split("/"))


def _is_path(annotation: Any) -> bool:
    return annotation is Path or any(_is_path(part) for part in get_args(annotation))


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def fits(annotation: Any, value: Any) -> bool:
    """Whether `value` fits `annotation`, including its ranges."""
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
    if origin is tuple and ... not in arguments:
        return isinstance(value, (list, tuple)) and len(value) == len(arguments) and all(map(fits, arguments, value))
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(arguments[0], item) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            fits(arguments[0], key) and fits(arguments[1], item) for key, item in value.items()
        )
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE
    if annotation is Path:
        return isinstance(value, (str, Path)) and bool(str(value)) and not path_problem(str(value))
    if annotation is type(None) or annotation is None:
        return value is None
    return isinstance(value, annotation)


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(option) for option in get_args(annotation)]
    return [option for part in get_args(annotation) for option in _literals(part)]
