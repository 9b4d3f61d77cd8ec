"""Names that hold what terminals, spreadsheets, pages and plots act on."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from imbalance_vlm.escapes import csv_cell, from_csv_cell, latex, markdown, mathtext, terminal, visible

NAMES = [
    "tabby cat",
    "two\nlines\r\n",
    "\x1b[31mred\x1b[0m",
    "\u202eright to left",
    "a|b",
    "back\\slash \\x41",
    "x^2_1 ~ 50 % & #3 ${}$",
    "<script>alert(1)</script> &lt;",
    '=HYPERLINK("http://x")',
    "+1",
    "-1",
    "@SUM(1)",
    "'quoted'",
    "\t=1+1",
    "not UTF-8: \udcff",
    "nul\0",
    "[link](http://x)",
    "`code` *bold* _slanted_",
    "NA",
    "",
    "'",
    "-",
    "\U000e0041tag",
    "ひらがな 👩\u200d🔬",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_stays_on_one_line_without_hidden_characters(name: str) -> None:
    for text in (visible(name), str(csv_cell(name)), markdown(name), latex(name), mathtext(name)):
        assert not set(text) & set("\n\r\x1b\0\u202e\udcff"), ascii(text)
        text.encode()


def test_lines_of_a_message_stay_lines() -> None:
    assert terminal("one\n\ttwo \x1b[2J") == "one\n\ttwo \\x1b[2J"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_cell_of_a_csv_file_is_no_formula_and_can_be_read_back(name: str) -> None:
    content = pd.DataFrame({"name": [csv_cell(name)], "number": [-0.5]}).to_csv(index=False)
    frame = pd.read_csv(io.StringIO(content), dtype={"name": str}, keep_default_na=False)
    cell = frame["name"][0]
    assert not (cell.startswith(("=", "+", "-", "@", "\t", "\r")) and len(cell) > 1)
    assert from_csv_cell(cell) == name
    assert frame["number"][0] == -0.5


def test_any_text_can_be_read_back_from_a_csv_file() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    characters = hypothesis.strategies.one_of(
        hypothesis.strategies.characters(), hypothesis.strategies.sampled_from("=+-@'\\xuU0123456789abcdef\n\x1b\udcff")
    )

    @hypothesis.settings(max_examples=500, deadline=None)
    @hypothesis.given(hypothesis.strategies.text(characters, max_size=20))
    def check(text: str) -> None:
        assert from_csv_cell(csv_cell(text)) == text

    check()


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("snake_case icons_lt/probe", "snake_case icons_lt/probe"),
        ("a|b", r"a\|b"),
        ("<b> &lt; R&D", "&lt;b> &amp;lt; R&D"),
        ("_x_ *y* `z`", r"\_x\_ \*y\* \`z\`"),
        ("[x](http://y)", r"[x]\(http://y)"),
    ],
)
def test_markdown_shows_markup_as_text(name: str, escaped: str) -> None:
    assert markdown(name) == escaped


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a_b 50 % & #3", r"a\_b 50 \% \& \#3"),
        (r"\x{1}^2~", r"\textbackslash{}x\{1\}\textasciicircum{}2\textasciitilde{}"),
        ("1 ± 2", r"1 $\pm$ 2"),
        ("[2pt]*", "{[}2pt]{*}"),
        ("a|<b>", r"a\textbar{}\textless{}b\textgreater{}"),
    ],
)
def test_latex_shows_its_special_characters(name: str, escaped: str) -> None:
    assert latex(name) == escaped


def test_plots_draw_dollar_signs_in_names() -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")
    for name in ("$5 bill", "$x^{$", "\\$a$", "$$"):
        figure = matplotlib.Figure()
        figure.suptitle(mathtext(name))
        figure.savefig(io.BytesIO())
