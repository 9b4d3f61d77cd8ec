"""Labels, with one meaning in every format: a name as it is written, or a whole number from 0.

cat, 01, 1e3, NA           names; 01 and 1 are two classes
0, 2, 10 or 0.0, 2.0, 10.0 whole numbers, where every label of the dataset is one; they sort as numbers
-1, 2.5, nan, true         refused, as is an empty value; true and false are refused where there is no other label
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from imbalance_vlm.errors import InputError

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"([0-9]+)(\.0*)?")
_NEGATIVE = re.compile(r"-\.?[0-9].*")
_LINE_BREAKING = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters (tabs and line ends among them), surrogates, line and paragraph separators."""

Where = Callable[[int], str]
"""The place of a row in its source, for messages: "t.csv, line 7"."""


def label_words(values: Sequence[Any], where: Where) -> tuple[list[str], bool]:
    """(N,) labels as text, and whether all of them are whole numbers; these are without a fraction such as .0 then.

    Args:
        values: (N,) as a format gives them: text, or the numbers of a format with types.
        where: the place of a row.

    Raises:
        InputError: a value that is no label, with its place.

    >>> label_words(["2.0", "10", "01"], str)
    (['2', '10', '01'], True)
    >>> label_words(["v2.0", "10", "01"], str)
    (['v2.0', '10', '01'], False)
    """
    text_of: dict[tuple[type, Any], str] = {}
    words = []
    for row, value in enumerate(values):
        key = type(value), value
        try:
            word = text_of.get(key)
        except TypeError:  # a list or a mapping in JSON
            raise _no_label(where(row), value, "give a name or a number") from None
        if word is None:
            word = text_of[key] = _label_text(value, where(row))
        words.append(word)
    distinct = set(words)
    if distinct and {word.lower() for word in distinct} <= {"true", "false"}:
        raise _no_label(where(0), words[0], "write the names of the two classes")
    if not all(_NUMBER.fullmatch(word) for word in distinct):
        return words, False
    for row, word in enumerate(words):
        if not _WHOLE.fullmatch(word):
            raise _no_label(where(row), word, "write whole numbers in digits, or names")
    return [word.partition(".")[0] for word in words], True


def label_number(value: Any) -> int | None:
    """A label of a list that numbers its classes from 0; None for a name, or a number with leading zeros.

    >>> label_number("7"), label_number(7.0), label_number("07"), label_number("cat")
    (7, 7, None, None)
    """
    try:
        [word], is_number = label_words([value], str)
    except InputError:
        return None
    return int(word) if is_number and word == (word.lstrip("0") or "0") and len(word) < 10 else None


def sorted_labels(words: set[str], numbers: bool) -> list[str]:
    """Distinct labels in order: names as text, whole numbers by size, 1 before 01.

    >>> sorted_labels({"10", "9", "01", "1"}, numbers=True)
    ['1', '01', '9', '10']
    """
    if not numbers:
        return sorted(words)
    digits = {word: word.lstrip("0") for word in words}
    return sorted(words, key=lambda word: (len(digits[word]), digits[word], len(word)))


def cell_text(value: Any, where: str, column: str) -> str:
    """A value as text without spaces around it.

    Raises:
        InputError: an empty value, or one with a tab, a line end or another control character.
    """
    text = str(value).strip()
    if value is None or value != value or text == "<NA>":
        text = ""
    if not any(unicodedata.category(letter)[0] not in "ZC" for letter in text):
        raise InputError(f"{where}: {column!r} is empty; fill it, or remove the entry")
    if any(unicodedata.category(letter) in _LINE_BREAKING for letter in text):
        raise InputError(
            f"{where}: {column!r} must be one line of text without tabs and control characters, got {text[:100]!r}; "
            "is a quote missing, or one too many?"
        )
    return text


def _label_text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        raise _no_label(where, value, "write the names of the two classes")
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = f"{value:.1f}"
    if not isinstance(value, (str, int, float)) and value is not None:
        raise _no_label(where, value, "give a name or a number")
    word = cell_text(value, where, "label")
    if _NEGATIVE.fullmatch(word) and _NUMBER.fullmatch(word):
        raise _no_label(where, value, "images without a label cannot be used: remove them from the source")
    if isinstance(value, float):
        raise _no_label(where, value, "write whole numbers in digits, or names")
    if not word.replace("_", "").strip():
        raise _no_label(where, value, "a name needs a letter, a digit or a sign")
    return word


def _no_label(where: str, value: Any, remedy: str) -> InputError:
    return InputError(f"{where}: a label must be a name or a whole number >= 0, got {str(value)[:100]!r}; {remedy}")
