r"""Text from data, folders and recipes as each output can show it: one function per output.

Class names, paths and names of runs may hold anything: line breaks, terminal codes, formulas, markup.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# Controls, formats (writing direction, zero width), line and paragraph separators, and bytes that are not UTF-8.
_HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}
_JOINERS = "\u200c\u200d"  # of scripts and emoji, which look different without them


def visible(text: str) -> str:
    r"""The text on one line, with characters that a terminal would act on, or not show, as `\x1b` or `\u202e`.

    >>> print(visible("red \x1b[31m fox\n"))
    red \x1b[31m fox\x0a
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_code(c) if unicodedata.category(c) in _HIDDEN and c not in _JOINERS else c for c in text)


def terminal(text: str) -> str:
    """Text of several lines for a terminal: as `visible`, but line breaks and tabs stay."""
    return re.sub(r"[^\n\t]+", lambda match: visible(match[0]), text)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


# -- CSV -------------------------------------------------------------------------------------------------------------
_FORMULA = re.compile(r"[=+\-@'].", re.DOTALL)  # a lone sign is no formula


def csv_cell(value: Any) -> Any:
    r"""A cell of a CSV file, safe in a spreadsheet and on a terminal; `from_csv_cell` is the inverse.

    Text that begins with = + - @ (a formula in a spreadsheet) or ', or that holds hidden characters, is written after
    a '; in such a cell hidden characters are codes (`\x0a`) and backslashes are doubled. Values other than text stay.

    >>> csv_cell("=cmd()"), csv_cell("tabby"), csv_cell(-0.5)
    ("'=cmd()", 'tabby', -0.5)
    """
    if not isinstance(value, str) or (visible(value) == value and not _FORMULA.match(value)):
        return value
    return "'" + visible(value.replace("\\", "\\\\"))


def from_csv_cell(cell: str) -> str:
    r"""The text that `csv_cell` made a cell of.

    >>> from_csv_cell("'=cmd()"), from_csv_cell("tabby")
    ('=cmd()', 'tabby')
    """
    if not cell.startswith("'") or len(cell) == 1:
        return cell
    code = r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))"
    return re.sub(code, lambda match: match[1] or chr(int(match[2] or match[3] or match[4], 16)), cell[1:])


# -- pages and plots -------------------------------------------------------------------------------------------------
_MARKDOWN = re.compile(r"[\\|`*]|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])")


def markdown(text: str) -> str:
    r"""Text inside a line or a table cell of Markdown; HTML in it is text too.

    >>> print(markdown("a|b <b>_x_</b> snake_case"))
    a\|b &lt;b>\_x\_&lt;/b> snake_case
    """
    escaped = _MARKDOWN.sub(lambda match: "\\" + match[0], visible(text))
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", escaped))


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$"}
    | {"[": "{[}", "*": "{*}"}  # after the end of a row they are arguments of it
)


def latex(text: str) -> str:
    r"""Text in a LaTeX document.

    >>> print(latex(r"50 % of \x^2"))
    50 \% of \textbackslash{}x\textasciicircum{}2
    """
    return visible(text).translate(_LATEX)


def mathtext(text: str) -> str:
    r"""Text in a plot, in which dollar signs enclose formulas.

    >>> print(mathtext("$5 bill"))
    \$5 bill
    """
    return visible(text).replace("$", r"\$")
